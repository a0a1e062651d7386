"""Serve the page of a run in progress, on this machine alone: GET / is the page, GET /data its newest content."""

import gzip
import json
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hellora.core.errors import InputError
from hellora.reporting.overview import page_of_run
from hellora.reporting.page import content_of, html
from hellora.reporting.record import read_run, stamp

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")  # by which a browser may ask; a page of elsewhere whose name was made to point here may not


class Watched:
    """Reads a run's folder again when it has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = Lock()
        self.version = 0
        self.stamp: object = None
        self.known: Mapping[str, Any] = {}

    def content(self) -> Mapping[str, Any]:
        """Return what the page shows now, with a `version` that grows whenever it is another.

        Raises:
            InputError: a file of the run is damaged.
        """
        with self.lock:
            now = stamp(self.folder)  # before it is read: what comes in between is seen next time
            if now != self.stamp:
                content = content_of(page_of_run(read_run(self.folder)))
                self.stamp, self.version = now, self.version + 1
                self.known = {**content, "version": self.version}
            return self.known


class Handler(BaseHTTPRequestHandler):
    """Answers one browser."""

    watched: Watched

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if urlsplit(f"//{self.headers.get('Host', '')}").hostname not in NAMES:
            self.send_error(403, "Ask for localhost")
        elif url.path == "/":
            self.answer(lambda: html(self.watched.content(), live=True), "text/html; charset=utf-8")
        elif url.path == "/data":
            self.answer(lambda: self.newer(parse_qs(url.query).get("since", [""])[0]), "application/json")
        else:
            self.send_error(404)

    def newer(self, since: str) -> str | None:
        """Return the content, unless it is still of the version `since`."""
        content = self.watched.content()
        return None if since == str(content["version"]) else json.dumps(content, allow_nan=False)

    def answer(self, text: Callable[[], str | None], kind: str) -> None:
        """Send what `text` returns, or why it cannot; None is nothing new."""
        try:
            found, status = text(), 200
        except InputError as error:
            found, status, kind = str(error), 500, "text/plain; charset=utf-8"
        if found is None:
            self.send_response(204)
            self.end_headers()
            return
        body = gzip.compress(found.encode(), compresslevel=1)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Keep silent: a request is no news."""


def server_of(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Make a server of the page of the run in `folder`, at a free port if 0 is asked for; `serve_forever` starts it.

    Raises:
        InputError: there is no run in the folder, or the port is taken.
    """
    watched = Watched(folder)
    watched.content()
    handler = type("HandlerOfRun", (Handler,), {"watched": watched})
    try:
        return ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        raise InputError(f"--port {port}: {error.strerror}: choose another, or none for a free one") from error
