"""Writing TFRecord files: all of a file, or nothing under its name."""

from __future__ import annotations

import contextlib
import os
import secrets
import weakref
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from foveal.files import sync_folder
from foveal.tensorflow.record_framing import frame, window_bits

if TYPE_CHECKING:
    import io


class RecordWriter:
    """Writes a file of records; nothing stands under its name until all of them are on the disk.

    A context manager: an exception inside the ``with`` leaves no file, and an older one as it was.
    """

    def __init__(self, path: Path | str, compression: Literal["gzip", "zlib"] | None = None) -> None:
        """Begin a temporary file beside ``path``; folders that do not exist are made."""
        bits = window_bits(compression)
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        self._file = self._temporary.open("xb")
        self._pack = None if bits is None else zlib.compressobj(wbits=bits)
        self.discard = weakref.finalize(self, _discard, self._file, self._temporary)
        """Give up: close and delete the temporary file. Happens by itself when nobody holds the writer."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def write(self, data: bytes) -> None:
        """Add a record.

        Raises:
            ValueError: the writer is closed, or an earlier write failed.
            OSError: the disk is full, for example; the file is given up.
        """
        self._put(frame(data), final=False)

    def close(self) -> None:
        """Force everything to the disk and give the file its name; does nothing the second time.

        Raises:
            OSError: that failed; nothing was changed under the file's name.
        """
        if not self.discard.alive:
            return
        self._put(b"", final=True)
        self.discard.detach()
        sync_folder(self.path.parent)

    def _put(self, content: bytes, *, final: bool) -> None:
        if not self.discard.alive:
            raise ValueError(f"{self.path}: the writer is closed, or failed before")
        try:
            if self._pack is not None:
                content = self._pack.compress(content) + (self._pack.flush() if final else b"")
            self._file.write(content)
            if final:
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._temporary.replace(self.path)
        except BaseException:
            self.discard()
            raise


def _discard(file: io.BufferedWriter, temporary: Path) -> None:
    with contextlib.suppress(OSError):  # what it still had to write may not fit on the disk; it is not wanted
        file.close()
    temporary.unlink(missing_ok=True)
