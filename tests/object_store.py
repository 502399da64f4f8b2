"""A small server that stands for Google Cloud Storage: objects in memory, generations, preconditions, ranges, pages.

It speaks the part of the JSON API that tensorstore uses:

    GET    /storage/v1/b/BUCKET/o?prefix=...                names, in pages
    GET    /storage/v1/b/BUCKET/o/NAME?alt=media            bytes, or a range of them
    POST   /upload/storage/v1/b/BUCKET/o?name=...           a whole object; `ifGenerationMatch` 0: only where there is none
    DELETE /storage/v1/b/BUCKET/o/NAME
"""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from fourreal.host import bucket

PAGE = 7  # names, so that listings have several


class ObjectStore(ThreadingHTTPServer):
    """One bucket, `bucket`, and another, `closed`, that nobody may use; `objects` holds (generation, bytes) by name."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.lock = threading.Lock()
        self.generation = 1000
        self.refuses: Callable[[str, str], int] = lambda method, name: 0
        """a status instead of an answer, by method and name of the object; 0: none"""
        self.requests: list[tuple[str, str]] = []

    @property
    def environment(self) -> dict[str, str]:
        """What makes tensorstore use this server, without credentials."""
        url = f"http://127.0.0.1:{self.server_port}"
        return {
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        }

    def write(self, name: str, data: bytes) -> None:
        """As another writer."""
        with self.lock:
            self.generation += 1
            self.objects[name] = self.generation, data

    def copy(self, prefix: str, folder: Path) -> Path:
        """The objects below a prefix as files in a folder."""
        with self.lock:
            found = {name: data for name, (_, data) in self.objects.items() if name.startswith(f"{prefix}/")}
        for name, data in found.items():
            path = folder / name.removeprefix(f"{prefix}/")
            if not name.endswith("/"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        return folder


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ObjectStore

    def log_message(self, *_) -> None:
        """Nothing goes to stderr."""

    def answer(self, status: int, data: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(data)

    def handle_one(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        path = parts.path.removeprefix("/upload").removeprefix("/storage/v1/b/")
        if path == parts.path:
            return self.answer(404)
        bucket, _, rest = path.partition("/o")
        name = query.get("name", "") if method == "POST" else unquote(rest.removeprefix("/"))
        self.server.requests.append((method, name))
        if bucket != "bucket":
            return self.answer(403 if bucket == "closed" else 404, b'{"error": {}}')
        if status := self.server.refuses(method, name):
            return self.answer(status)
        if method == "GET" and not name:
            return self.list(query)
        with self.server.lock:
            generation, data = self.server.objects.get(name, (0, b""))
            wanted = query.get("ifGenerationMatch")
            if wanted is not None and int(wanted) != generation:
                return self.answer(412)
            if method == "POST":
                self.server.generation += 1
                self.server.objects[name] = self.server.generation, body
                found = {"name": name, "generation": str(self.server.generation), "size": str(len(body))}
                return self.answer(200, json.dumps(found).encode(), Content_Type="application/json")
            if not generation:
                return self.answer(404)
            if method == "DELETE":
                del self.server.objects[name]
                return self.answer(204)
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304)
        self.read(data, generation)

    def read(self, data: bytes, generation: int) -> None:
        known = {"X_Goog_Generation": str(generation)}
        asked = self.headers.get("Range")
        if not asked:
            return self.answer(200, data, **known)
        first, last = asked.removeprefix("bytes=").split("-")
        start = int(first) if first else max(0, len(data) - int(last))
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            return self.answer(416)
        self.answer(206, data[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(data)}", **known)

    def list(self, query: dict[str, str]) -> None:
        prefix, first, last = query.get("prefix", ""), query.get("startOffset", ""), query.get("endOffset", "")
        with self.server.lock:
            held = {name: value for name, value in self.server.objects.items() if name.startswith(prefix)}
        names = sorted(name for name in held if name >= first and (not last or name < last))
        names = [name for name in names if name > query.get("pageToken", "")]
        items = [
            {"name": name, "generation": str(held[name][0]), "size": str(len(held[name][1]))} for name in names[:PAGE]
        ]
        page = {"items": items} | ({"nextPageToken": names[PAGE - 1]} if len(names) > PAGE else {})
        self.answer(200, json.dumps(page).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        """Of `BaseHTTPRequestHandler`."""
        self.handle_one("GET")

    def do_POST(self) -> None:
        """Of `BaseHTTPRequestHandler`."""
        self.handle_one("POST")

    def do_DELETE(self) -> None:
        """Of `BaseHTTPRequestHandler`."""
        self.handle_one("DELETE")


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server that runs inside."""
    with ObjectStore() as server:
        threading.Thread(target=server.serve_forever, daemon=True, args=(0.05,)).start()
        try:
            yield server
        finally:
            server.shutdown()


@contextlib.contextmanager
def store_of_this_process() -> Iterator[ObjectStore]:
    """A server that this process takes for Google's; what fails is soon tried again, three times."""
    with object_store() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setattr(bucket, "RETRIES", {"max_retries": 3, "initial_delay": "10ms", "max_delay": "20ms"})
        bucket.open_bucket.cache_clear()
        yield server
    bucket.open_bucket.cache_clear()


@contextlib.contextmanager
def emptied(server: ObjectStore) -> Iterator[ObjectStore]:
    """It without objects, and refusing nothing afterwards."""
    server.objects.clear()
    server.requests.clear()
    yield server
    server.refuses = lambda method, name: 0
