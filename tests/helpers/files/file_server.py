"""A local file server that resumes, breaks off, cuts short or knows no ranges, as told; it keeps what was asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What is served and how.

    Attributes:
        files: path to contents.
        ranges: whether Range is understood.
        break_after: bytes of the body after which the connection is closed, one number a request; None sends all.
        status: answers of this status first, one a request.
        etag: of every file.
        etags: path to the one of this file.
        headers: of every answer.
        missing: path of what is not there, or "" for all of it, to the headers of its answer of status 404.
    """

    files: dict[str, bytes]
    ranges: bool = True
    break_after: list[int | None] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    etag: str | None = '"1"'
    etags: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[FileServer]:
    state = FileServer(files)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def end_headers(self) -> None:
            for name, value in state.headers.items():
                self.send_header(name, value)
            super().end_headers()

        def do_HEAD(self) -> None:
            self._answer(False)

        def do_GET(self) -> None:
            self._answer(True)

        def _answer(self, whole: bool) -> None:
            state.requests.append((self.path, self.headers.get("Range")))
            body = state.files.get(self.path)
            if body is None and not state.status and state.missing:
                self.send_response(404)
                for name, value in state.missing.get(self.path, state.missing[""]).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if state.status or body is None:
                self.send_error(state.status.pop(0) if state.status else 404)
                return
            total, etag = len(body), state.etags.get(self.path, state.etag)
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            same = self.headers.get("If-Range") in (None, etag)
            if asked and state.ranges and same:
                start = int(asked[1])
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                body = body[start:]
            else:
                self.send_response(200)
            if etag:
                self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not whole:
                return
            cut = state.break_after.pop(0) if state.break_after else None
            self.wfile.write(body if cut is None else body[:cut])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
