"""Fetching published files: resumed where they broke off, verified, and never half there under their name."""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from filelock import FileLock

from foveal.errors import DownloadError
from foveal.files import sync_folder, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import httpx

__all__ = ["ProgressReporter", "RemoteFile", "fetch", "fetch_all"]

_PAUSES = (0.5, 1.0, 2.0)  # seconds between the attempts at one address: one more than there are pauses


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name in our folder, bytes, hexadecimal digest, and addresses, best first."""

    name: str
    size: int
    sha256: str
    urls: tuple[str, ...]


class ProgressReporter(Protocol):
    """Is told how a download goes."""

    def start(self, name: str, total_bytes: int, done_bytes: int) -> None:
        """Begin a file, or the same one again: ``done_bytes`` of it are here and will not be fetched."""

    def advance(self, n: int) -> None:
        """Count ``n`` more bytes of it."""

    def finish(self) -> None:
        """End the file that was begun, whether it was fetched or not."""


def fetch(file: RemoteFile, folder: Path, *, progress: ProgressReporter | None = None) -> Path:
    """Return the path of ``file`` in ``folder``, downloading it if it is not there; see ``fetch_all``."""
    return fetch_all([file], folder, progress)[0]


def fetch_all(
    files: Sequence[RemoteFile],
    folder: Path,
    progress: ProgressReporter | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Path]:
    """Return the paths of ``files`` in ``folder``, downloading those that are not there.

    A file is there when its name and size are right: its digest is verified before it gets its name.
    Until then it is ``.NAME.partial``, which an interruption leaves for the next call to continue.
    Processes that want the same file wait for the one that fetches it. ``sleep`` is called between attempts.

    Raises:
        DownloadError: a file could not be fetched; names every one that is still missing.
    """
    missing = [file for file in files if _length(folder / file.name) != file.size]
    paths = [folder / file.name for file in files]
    if not missing:
        return paths
    import httpx

    with httpx.Client(follow_redirects=True, timeout=httpx.Timeout(30.0, connect=10.0)) as client:
        for i, file in enumerate(missing):
            path = folder / file.name
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(path.with_name(f".{path.name}.lock")):
                    if _length(path) != file.size:
                        _Download(file, path, client, progress or _Silent()).run(sleep)
            except (_AttemptError, OSError) as error:
                raise DownloadError(_advice(missing[i:], folder, _plain(error))) from error
    return paths


class _AttemptError(Exception):
    """The file was not fetched from an address, and will not be if asked again."""


class _BrokenAttemptError(_AttemptError):
    """The file was not fetched from an address; another attempt may succeed."""


class _Silent:
    def start(self, *_: object, **__: object) -> None: ...

    advance = finish = start


class _Download:
    """One file on its way into a folder; the caller holds its lock."""

    def __init__(self, file: RemoteFile, path: Path, client: httpx.Client, report: ProgressReporter) -> None:
        self.file, self.path, self.client, self.progress = file, path, client, report
        self.partial = path.with_name(f".{path.name}.partial")
        self.origin = path.with_name(f".{path.name}.partial.origin")  # its address, and the version there

    def run(self, sleep: Callable[[float], None]) -> None:
        import httpx

        reasons = []
        try:
            self.progress.start(self.file.name, self.file.size, _length(self.partial))
            for url in self.file.urls:
                for pause in (*_PAUSES, None):
                    try:
                        return self._attempt(url)
                    except (_AttemptError, httpx.HTTPError, httpx.InvalidURL) as error:
                        reason = _plain(error)
                        if pause is None or not isinstance(error, _BrokenAttemptError | httpx.TransportError):
                            break
                    sleep(pause)
                reasons.append(f"{urlsplit(url).netloc or url}: {reason}")
        finally:
            self.progress.finish()
        raise _AttemptError("; ".join(reasons) or "no address is known for it")

    def _attempt(self, url: str) -> None:
        """Complete the partial from ``url``, verify it and give it its name."""
        resumed_from = _length(self.partial)
        if resumed_from < self.file.size:
            resumed_from = self._receive(url, resumed_from)
        with self.partial.open("rb+") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.file.sha256.lower():
            self._discard()  # what was resumed may be at fault, so this address gets another attempt
            raise (_BrokenAttemptError if resumed_from else _AttemptError)("wrong SHA-256")
        self.partial.replace(self.path)
        self.origin.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def _receive(self, url: str, offset: int) -> int:
        """Append to the ``offset`` bytes that are here; return how many of them the server let us keep."""
        size, version = self.file.size, self._version_at(url)
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers |= {"Range": f"bytes={offset}-"} | ({"If-Range": version} if version else {})
        with self.client.stream("GET", url, headers=headers) as response:
            done = offset = self._accepted(response, offset)
            with self.partial.open("ab" if offset else "wb") as out:
                if not (offset and version):
                    write_atomically(self.origin, f"{url}\n{_version(response)}".encode())
                self.progress.start(self.file.name, size, offset)
                for chunk in response.iter_raw():
                    done += len(chunk)
                    if done > size:
                        break
                    out.write(chunk)
                    self.progress.advance(len(chunk))
        if done > size:
            self._discard()
            raise _AttemptError(f"sends more than the {size} bytes of the file")
        if done < size:
            raise _BrokenAttemptError(f"broke off after {done} of {size} bytes")
        return offset

    def _accepted(self, response: httpx.Response, offset: int) -> int:
        """The offset at which the body starts; raises if it is not (the rest of) a file of our size."""
        status, size = response.status_code, str(self.file.size)
        stated = response.headers.get("Content-Range", "")
        if status == 206 and stated.startswith(f"bytes {offset}-") and stated.endswith((f"/{size}", "/*")):
            return offset
        if status in {206, 416}:
            self._discard()  # the next attempt asks for the whole file
            raise _BrokenAttemptError(f"HTTP {status} with the range {stated!r}")
        if status != 200:
            passing = status in {408, 429} or status >= 500
            raise (_BrokenAttemptError if passing else _AttemptError)(f"HTTP {status}")
        if (length := response.headers.get("Content-Length", size)) != size:
            raise _AttemptError(f"has {length} bytes instead of {size}")
        return 0

    def _version_at(self, url: str) -> str:
        """The version of the partial, if ``url`` is where it came from."""
        noted = self.origin.read_bytes().decode(errors="replace") if self.origin.exists() else ""
        address, _, version = noted.partition("\n")
        return version if address == url else ""

    def _discard(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.origin.unlink(missing_ok=True)


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _version(response: httpx.Response) -> str:
    """What ``If-Range`` may name (RFC 9110, 13.1.5): a strong ETag, else the date of last change."""
    tag = response.headers.get("ETag", "")
    version = str(response.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag)
    return version if version.isascii() else ""


def _plain(error: Exception) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", " ".join(str(error).split())) or type(error).__name__


def _advice(missing: Sequence[RemoteFile], folder: Path, reason: str) -> str:
    what = "the file" if len(missing) == 1 else ", ".join(file.name for file in missing)
    advice = f"put {what} in {folder}, or give another folder with --data"
    return f"could not download {missing[0].name} ({reason}): {advice}"
