"""A server on this machine that speaks the hub's protocol: HEAD with the file's hash, a redirect to where the bytes lie, byte ranges.

And that can be made to behave badly: to stop in the middle, to hand out other bytes than it announced, to be down.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

COMMIT = "c" * 40
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB


class Hub:
    """Repositories as `{"owner/name": {"file": bytes}}`, and what was asked of them."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.repositories = repositories
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.stop_after: int | None = None  # bytes of the next answer, after which the connection is cut; then the server is down
        self.down = False
        self.altered = False  # other bytes, of the same number
        self.small = ("tokenizer.json",)  # files that lie in git itself and not in its large storage
        self.url = self.store = ""

    def etag(self, name: str, content: bytes) -> str:
        """SHA-256 of a large file, git's blob id of a small one."""
        if name in self.small:
            return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        return hashlib.sha256(content).hexdigest()

    def fetched(self) -> list[tuple[str, str | None]]:
        """Paths and ranges of the bytes that were asked for."""
        return [(path, wanted) for method, path, wanted in self.asked if method == "GET" and path.startswith("/bytes/")]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client hangs up when it is done
                super().handle()

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            hub.asked.append((self.command, self.path, self.headers.get("Range")))
            if hub.down:
                self.reply(503)
            elif self.path.startswith("/bytes/"):
                repository, name = self.path.removeprefix("/bytes/").rsplit("/", 1)
                self.bytes(hub.repositories[repository][name])
            else:
                self.resolve()

        def resolve(self) -> None:
            repository, _, rest = self.path.removeprefix("/").partition("/resolve/")
            name = rest.partition("/")[2]
            files = hub.repositories.get(repository)
            if files is None:
                self.reply(404, {"X-Error-Code": "RepoNotFound"})
            elif name not in files:
                self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                tag, where = hub.etag(name, files[name]), f"{hub.store}/bytes/{repository}/{name}"
                told = {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Location": where}
                told |= {"X-Linked-ETag": f'"{tag}"', "X-Linked-Size": str(len(files[name]))}
                self.reply(302, told)

        def bytes(self, content: bytes) -> None:
            whole = len(content)
            if hub.altered:
                content = content[:-1] + bytes([content[-1] ^ 1])
            wanted, headers, status = self.headers.get("Range"), {}, 200
            if wanted:
                start = int(wanted.removeprefix("bytes=").partition("-")[0])
                headers, status = {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"}, 206
                content = content[start:]
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if hub.stop_after is not None:
                self.wfile.write(content[: hub.stop_after])
                self.wfile.flush()
                hub.stop_after, hub.down, self.close_connection = None, True, True
            else:
                self.wfile.write(content)

        def reply(self, status: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": "0"}.items():
                self.send_header(key, value)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    hub.store = f"http://localhost:{server.server_address[1]}"  # another host, as the real one's: the client stops there when it asks
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """`owner/towers` with weights in the older format, and a tokenizer."""
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="the hub's client comes with open_clip (the extra `export`)")
    from huggingface_hub import constants, file_download

    with serving(Hub({"owner/towers": {"open_clip_pytorch_model.bin": WEIGHTS, "tokenizer.json": b'{"version": "1.0"}'}})) as served:
        # The client reads its environment when it is imported, which other tests have done: test_environment starts it afresh.
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # 10 MB in earnest: so much is lost where a connection breaks
        monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # between its attempts
        yield served
    huggingface_hub.close_session()
