from __future__ import annotations

import hashlib
import io
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from foveal.cli.progress import DownloadBar
from foveal.data.download import RemoteFile, fetch, fetch_all
from foveal.errors import DownloadError

CONTENT = random.Random(1).randbytes(600_000)
OTHER = random.Random(2).randbytes(600_000)
HALF = 300_000
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
PATIENCE = 20.0  # seconds until a test that waits gives up


@dataclass
class Page:
    """What the server has at one path, and how it misbehaves there."""

    content: bytes = CONTENT
    etag: str | None = '"one"'
    last_modified: str | None = None
    ranges: bool = True
    if_range: bool = True
    declare_length: bool = True
    breaks: list[int | None] = field(default_factory=list)  # offset to close at, one per request
    statuses: list[int] = field(default_factory=list)  # answered before anything else, one per request
    redirect: str | None = None
    stall_at: int | None = None  # the first request waits there for the gate


@dataclass
class Request:
    path: str
    range: str | None
    if_range: str | None
    sent: int = 0


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, Page] = {}
        self.requests: list[Request] = []
        self.gate = threading.Event()

    @property
    def host(self):
        return f"127.0.0.1:{self.server_port}"

    def url(self, path):
        return f"http://{self.host}{path}"

    def put(self, path, **page):
        self.pages[path] = Page(**page)
        return self.url(path)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        request = Request(self.path, self.headers["Range"], self.headers["If-Range"])
        self.server.requests.append(request)
        page = self.server.pages.get(self.path)
        if page is None or len(self.server.requests) > 50:
            return self.send_error(404)
        if page.statuses:
            return self.send_error(page.statuses.pop(0))
        if page.redirect:
            self.send_response(302)
            self.send_header("Location", page.redirect)
            return self.end_headers()
        start = self.answer_head(page, request)
        if start is None:
            return None
        stop = (page.breaks.pop(0) if page.breaks else None) or len(page.content)
        if page.stall_at is not None and not self.server.gate.is_set():
            self.send(request, page.content[start : page.stall_at])
            start = page.stall_at
            self.server.gate.wait(PATIENCE)
        return self.send(request, page.content[start:stop])

    def answer_head(self, page, request):
        size, start = len(page.content), 0
        version = page.etag or page.last_modified
        if request.range and page.ranges and (request.if_range in {None, version} or not page.if_range):
            start = int(re.fullmatch(r"bytes=(\d+)-", request.range)[1])
            if start >= size:
                self.send_error(416)
                return None
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        if page.etag:
            self.send_header("ETag", page.etag)
        if page.last_modified:
            self.send_header("Last-Modified", page.last_modified)
        if page.declare_length:
            self.send_header("Content-Length", str(size - start))
        self.end_headers()
        return start

    def send(self, request, body):
        try:
            self.wfile.write(body)
            self.wfile.flush()
            request.sent += len(body)
        except OSError:
            pass  # the client was killed, or has seen enough

    def log_message(self, *_):
        pass


class Story:
    """A progress reporter that remembers, and may do something at each piece."""

    def __init__(self, at_each=None):
        self.starts, self.bytes, self.finished = [], 0, 0
        self.at_each = at_each or (lambda: None)

    def start(self, name, total_bytes, done_bytes):
        self.starts.append((name, total_bytes, done_bytes))

    def advance(self, n):
        self.bytes += n
        self.at_each()

    def finish(self):
        self.finished += 1


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.gate.set()
        server.shutdown()
        thread.join(PATIENCE)
        assert len(server.requests) < 50


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # bound, not listening: refused, and nobody else gets the port
        yield listener.getsockname()[1]


def remote(*urls, name="images.gz", content=CONTENT):
    return RemoteFile(name, len(content), hashlib.sha256(content).hexdigest(), urls)


def get(file, folder, progress=None):
    [path] = fetch_all([file], folder, progress, sleep=lambda _: None)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def partial(folder):
    return folder / ".images.gz.partial"


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def fetching_process(file, folder):
    code = (
        "import sys; from pathlib import Path; from foveal.data.download import RemoteFile, fetch\n"
        "name, size, digest, url, folder = sys.argv[1:]\n"
        "fetch(RemoteFile(name, int(size), digest, (url,)), Path(folder))"
    )
    arguments = [file.name, str(file.size), file.sha256, file.urls[0], str(folder)]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=ENVIRONMENT)


def test_a_download_has_the_published_content_and_leaves_nothing_else(server, tmp_path):
    story = Story()
    path = fetch(remote(server.put("/a")), tmp_path / "new" / "folder", progress=story)
    assert path == tmp_path / "new" / "folder" / "images.gz"
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["images.gz"]
    assert set(story.starts) == {("images.gz", len(CONTENT), 0)}
    assert (story.bytes, story.finished) == (len(CONTENT), 1)


def test_a_file_that_is_there_makes_no_request(server, tmp_path):
    file = remote(server.put("/a"))
    assert fetch(file, tmp_path) == fetch(file, tmp_path)
    assert len(server.requests) == 1


def test_a_file_of_the_wrong_size_is_replaced(server, tmp_path):
    (tmp_path / "images.gz").write_bytes(b"<html>please log in</html>")
    assert get(remote(server.put("/a")), tmp_path).read_bytes() == CONTENT


def test_redirects_are_followed(server, tmp_path):
    server.put("/a")
    assert get(remote(server.put("/moved", redirect="/a")), tmp_path).read_bytes() == CONTENT


def test_a_broken_connection_is_resumed_where_it_stopped(server, tmp_path):
    story = Story()
    url = server.put("/a", breaks=[HALF, HALF + 100_000])
    assert get(remote(url), tmp_path, story).read_bytes() == CONTENT
    assert [(r.range, r.if_range) for r in server.requests] == [
        (None, None),
        (f"bytes={HALF}-", '"one"'),
        (f"bytes={HALF + 100_000}-", '"one"'),
    ]
    assert sum(r.sent for r in server.requests) == len(CONTENT)
    assert story.bytes == len(CONTENT)
    assert names(tmp_path) == ["images.gz"]


def test_pauses_between_attempts_grow(server, tmp_path):
    pauses = []
    with pytest.raises(DownloadError, match="HTTP 503"):
        fetch_all([remote(server.put("/a", statuses=[503] * 9))], tmp_path, sleep=pauses.append)
    assert pauses == [0.5, 1.0, 2.0]
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_failure_of_the_server_is_tried_again(server, tmp_path, status):
    assert get(remote(server.put("/a", statuses=[status])), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_goes_to_the_next_mirror_at_once(server, tmp_path, status):
    file = remote(server.put("/a", statuses=[status]), server.put("/b"))
    assert get(file, tmp_path).read_bytes() == CONTENT
    assert [r.path for r in server.requests] == ["/a", "/b"]


def test_a_mirror_that_refuses_the_connection_is_passed_over(server, tmp_path, closed_port):
    file = remote(f"http://127.0.0.1:{closed_port}/a", server.put("/b"))
    assert get(file, tmp_path).read_bytes() == CONTENT


def test_an_address_that_is_not_http_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(CONTENT)
    with pytest.raises(DownloadError, match="protocol"):
        get(remote((tmp_path / "secret").as_uri()), tmp_path)
    assert not (tmp_path / "images.gz").exists()


def test_wrong_content_falls_to_the_next_mirror(server, tmp_path):
    file = remote(server.put("/a", content=OTHER), server.put("/b"))
    assert get(file, tmp_path).read_bytes() == CONTENT
    assert [(r.path, r.range) for r in server.requests] == [("/a", None), ("/b", None)]


def test_wrong_content_everywhere_is_an_error_that_leaves_nothing(server, tmp_path):
    with pytest.raises(DownloadError, match="wrong SHA-256"):
        get(remote(server.put("/a", content=OTHER)), tmp_path)
    assert names(tmp_path) == []


def test_a_server_that_cannot_resume_is_asked_for_everything(server, tmp_path):
    story = Story()
    url = server.put("/a", ranges=False, breaks=[HALF])
    assert get(remote(url), tmp_path, story).read_bytes() == CONTENT
    assert [r.range for r in server.requests] == [None, f"bytes={HALF}-"]
    assert story.starts[-1] == ("images.gz", len(CONTENT), 0)


@pytest.mark.parametrize(
    ("header", "old", "new"),
    [
        ("etag", '"old"', '"new"'),
        ("last_modified", "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"),
    ],
)
def test_a_file_that_changed_meanwhile_is_not_glued(server, tmp_path, header, old, new):
    file = remote(server.put("/a", content=OTHER, breaks=[HALF], **{"etag": None, header: old}))
    fetch_all([file], tmp_path, sleep=lambda _: server.put("/a", **{"etag": None, header: new}))
    assert (tmp_path / "images.gz").read_bytes() == CONTENT
    assert server.requests[1].if_range == old
    assert [r.sent for r in server.requests] == [HALF, len(CONTENT)]  # refused by If-Range, not by the digest


def test_a_changed_file_that_was_glued_all_the_same_is_fetched_anew(server, tmp_path):
    url = server.put("/a", content=OTHER, breaks=[HALF])
    fetch_all([remote(url)], tmp_path, sleep=lambda _: server.put("/a", etag='"new"', if_range=False))
    assert (tmp_path / "images.gz").read_bytes() == CONTENT
    assert [r.range for r in server.requests] == [None, f"bytes={HALF}-", None]


def test_a_weak_etag_is_not_sent_as_if_range(server, tmp_path):
    get(remote(server.put("/a", etag='W/"one"', breaks=[HALF])), tmp_path)
    assert [(r.range, r.if_range) for r in server.requests] == [(None, None), (f"bytes={HALF}-", None)]


def test_the_next_mirror_continues_the_partial(server, tmp_path):
    first, second = server.put("/a", breaks=[HALF]), server.put("/b", etag='"two"', breaks=[HALF + 1])
    file = remote(first, second)
    fetch_all([file], tmp_path, sleep=lambda _: server.pages.pop("/a", None))
    assert (tmp_path / "images.gz").read_bytes() == CONTENT
    assert [(r.path, r.range, r.if_range) for r in server.requests] == [
        ("/a", None, None),
        ("/a", f"bytes={HALF}-", '"one"'),
        ("/b", f"bytes={HALF}-", None),
        ("/b", f"bytes={HALF + 1}-", '"two"'),
    ]


def test_a_declared_length_that_is_wrong_is_refused_before_the_body(server, tmp_path):
    partial(tmp_path).write_bytes(CONTENT[:HALF])
    with pytest.raises(DownloadError, match="has 600004 bytes instead of 600000"):
        get(remote(server.put("/a", content=CONTENT + b"more", ranges=False)), tmp_path)
    assert partial(tmp_path).read_bytes() == CONTENT[:HALF]


def test_a_body_that_is_too_long_is_cut_off(server, tmp_path):
    longest = 0

    def measure():
        nonlocal longest
        longest = max(longest, partial(tmp_path).stat().st_size)

    url = server.put("/a", content=CONTENT + OTHER, declare_length=False)
    with pytest.raises(DownloadError, match="sends more than the 600000 bytes"):
        get(remote(url), tmp_path, Story(measure))
    assert len(CONTENT) // 2 < longest <= len(CONTENT)
    assert (names(tmp_path), len(server.requests)) == ([], 1)


def test_a_body_that_ends_early_without_a_declared_length_is_resumed(server, tmp_path):
    url = server.put("/a", declare_length=False, breaks=[HALF])
    assert get(remote(url), tmp_path).read_bytes() == CONTENT
    assert server.requests[1].range == f"bytes={HALF}-"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_range_that_cannot_be_satisfied_restarts(server, tmp_path, ranges):
    partial(tmp_path).write_bytes(CONTENT[:HALF])
    url = server.put("/a", ranges=ranges, statuses=[416])
    assert get(remote(url), tmp_path).read_bytes() == CONTENT
    assert [r.range for r in server.requests] == [f"bytes={HALF}-", None]


@pytest.mark.parametrize("excess", [0, 7])
def test_a_partial_that_is_long_enough_but_wrong_is_fetched_anew(server, tmp_path, excess):
    partial(tmp_path).write_bytes(OTHER + bytes(excess))
    assert get(remote(server.put("/a")), tmp_path).read_bytes() == CONTENT
    assert [r.range for r in server.requests] == [None]


def test_a_partial_that_is_complete_needs_no_request(server, tmp_path):
    partial(tmp_path).write_bytes(CONTENT)
    assert get(remote(server.put("/a")), tmp_path).read_bytes() == CONTENT
    assert server.requests == []


def test_ctrl_c_leaves_the_partial_for_the_next_call(server, tmp_path):
    def interrupt():
        if partial(tmp_path).stat().st_size > HALF:
            raise KeyboardInterrupt

    story, file = Story(interrupt), remote(server.put("/a"))
    with pytest.raises(KeyboardInterrupt):
        get(file, tmp_path, story)
    kept = partial(tmp_path).stat().st_size
    assert (story.bytes, story.finished) == (kept, 1)
    assert get(file, tmp_path).read_bytes() == CONTENT
    assert server.requests[1].range == f"bytes={kept}-"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_is_continued_by_the_next(server, tmp_path, how):
    file = remote(server.put("/a", stall_at=HALF))
    process = fetching_process(file, tmp_path)
    wait_until(lambda: partial(tmp_path).exists() and partial(tmp_path).stat().st_size > HALF // 2)
    process.send_signal(how)
    assert process.wait(PATIENCE) != 0
    assert not (tmp_path / "images.gz").exists()
    kept = partial(tmp_path).stat().st_size
    server.gate.set()
    assert get(file, tmp_path).read_bytes() == CONTENT
    assert (server.requests[1].range, server.requests[1].if_range) == (f"bytes={kept}-", '"one"')


def test_a_second_process_waits_for_the_first_and_fetches_nothing(server, tmp_path):
    file = remote(server.put("/a", stall_at=HALF))
    first = fetching_process(file, tmp_path)
    wait_until(lambda: server.requests)
    results = []
    second = threading.Thread(target=lambda: results.append(get(file, tmp_path).read_bytes()))
    second.start()
    second.join(1.0)
    assert second.is_alive()
    server.gate.set()
    assert first.wait(PATIENCE) == 0
    second.join(PATIENCE)
    assert results == [CONTENT]
    assert len(server.requests) == 1


def test_the_final_name_never_stands_for_a_part(server, tmp_path):
    seen = []
    url = server.put("/a", breaks=[HALF, HALF + 1000], etag=None)
    story = Story(lambda: seen.append((tmp_path / "images.gz").exists()))
    path = get(remote(server.put("/wrong", content=OTHER), url), tmp_path, story)
    assert set(seen) == {False}
    assert path.read_bytes() == CONTENT


def test_without_a_network_the_message_names_every_file_and_the_folder(tmp_path, closed_port):
    files = [remote(f"http://127.0.0.1:{closed_port}/{name}", name=name) for name in ("a.gz", "b.gz", "c.gz")]
    with pytest.raises(DownloadError) as caught:
        fetch_all(files, tmp_path, sleep=lambda _: None)
    assert str(caught.value) == (
        f"could not download a.gz (127.0.0.1:{closed_port}: Connection refused): "
        f"put a.gz, b.gz, c.gz in {tmp_path}, or give another folder with --data"
    )


def test_the_message_names_only_what_is_missing_and_each_mirror(server, tmp_path, closed_port):
    refused = f"http://127.0.0.1:{closed_port}/b"
    files = [remote(server.put("/a"), name="a.gz"), remote(refused, server.url("/no"), name="b.gz")]
    with pytest.raises(DownloadError) as caught:
        fetch_all(files, tmp_path, sleep=lambda _: None)
    assert str(caught.value) == (
        f"could not download b.gz (127.0.0.1:{closed_port}: Connection refused; {server.host}: HTTP 404): "
        f"put the file in {tmp_path}, or give another folder with --data"
    )
    assert names(tmp_path) == ["a.gz"]


def test_several_files_are_returned_in_order_and_only_missing_ones_fetched(server, tmp_path):
    files = [remote(server.put(f"/{name}"), name=name) for name in ("a", "b", "c")]
    fetch(files[1], tmp_path)
    assert [path.name for path in fetch_all(files, tmp_path)] == ["a", "b", "c"]
    assert [r.path for r in server.requests] == ["/b", "/a", "/c"]


def test_a_folder_that_cannot_be_written_is_one_clear_line(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        DownloadError, match=r"could not download images.gz \(.*\): put the file in"
    ) as caught:
        get(remote(server.put("/a")), tmp_path / "file" / "folder")
    assert "\n" not in str(caught.value)


def test_importing_the_module_does_not_import_httpx():
    code = "import sys, foveal.data.download; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False).returncode == 0


def test_in_a_log_a_download_is_one_line(server, tmp_path):
    log = io.StringIO()
    get(remote(server.put("/a", breaks=[HALF])), tmp_path, DownloadBar(Console(file=log, width=20)))
    assert log.getvalue() == "downloading images.gz (600.0 kB)\n"


def test_on_a_terminal_a_download_is_a_bar_that_vanishes(server, tmp_path):
    screen = io.StringIO()
    bar = DownloadBar(Console(file=screen, force_terminal=True, width=100))
    files = [remote(server.put(f"/{name}", breaks=[HALF]), name=name) for name in ("first.gz", "second.gz")]
    fetch_all(files, tmp_path, bar, sleep=lambda _: None)
    shown = screen.getvalue()
    assert all(part in shown for part in ("first.gz", "second.gz", "600.0 kB"))
    assert shown.endswith("\x1b[2K")  # the last thing done is to clear the line
