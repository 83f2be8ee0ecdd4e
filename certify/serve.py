"""The runs of a folder as pages in a browser, live while one is running. It reads, and never writes.

    /              the runs, the latest first
    /run/NAME      the report of one
    /state, /state/NAME    how they stand, as JSON: what the pages ask every other second

NAME is looked up among the runs that were found, and never becomes a path. What comes from files is escaped (see
certify.report.html); only the pages' own script may run. On a loopback address, requests that name another host are
refused: a page from elsewhere could otherwise have its own name point here (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import os
import socket
import socketserver
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from certify.errors import CertifyError, UsageError
from certify.report.folder import Outline, is_running, read_folder, read_outline
from certify.report.html import policy, render, render_list
from certify.run_folder import DATABASE

DEPTH = 3  # folders below the given one
MOST_RUNS = 1000
KEPT_PAGES = 8
REQUEST_SECONDS = 30

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    body: bytes
    kind: str = "text/html; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK


@dataclass(eq=False)
class Site:
    """The pages of the runs under `root`. What was made is kept until the run's database changes."""

    root: Path
    _pages: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    _outlines: dict[str, tuple[str, Outline]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def answer(self, path: str) -> Answer:
        """What a request's path gets."""
        try:
            match urlsplit(path).path.split("/", 2)[1:]:
                case [""]:
                    return self._list()
                case ["run", name] if root := self.runs().get(unquote(name)):
                    return Answer(self._page(unquote(name), root))
                case ["state"]:
                    return self._state(self.runs())
                case ["state", name] if root := self.runs().get(unquote(name)):
                    return self._state({unquote(name): root})
        except CertifyError as error:
            return Answer(str(error).encode(), "text/plain; charset=utf-8", HTTPStatus.INTERNAL_SERVER_ERROR)
        return Answer(b"There is no such page.", "text/plain; charset=utf-8", HTTPStatus.NOT_FOUND)

    def runs(self) -> dict[str, Path]:
        """Name, which is the place below the root, -> folder; the latest first. Links are not followed."""
        found: dict[str, Path] = {}
        for folder, below, files in os.walk(self.root):
            place = Path(folder)
            depth = len(place.relative_to(self.root).parts)
            below[:] = sorted(b for b in below if not b.startswith(".")) if depth < DEPTH else []
            if DATABASE in files and not (place / DATABASE).is_symlink():
                found[place.relative_to(self.root).as_posix()] = place
                below.clear()
            if len(found) >= MOST_RUNS:
                break
        return dict(sorted(found.items(), key=lambda item: (-_changed(item[1]), item[0])))

    def _list(self) -> Answer:
        rows: list[dict[str, Any]] = []
        for name, root in self.runs().items():
            row: dict[str, Any] = {"name": name, "address": f"/run/{quote(name)}", "outline": None, "error": ""}
            try:
                row["outline"] = self._outline(name, root)
            except CertifyError as error:
                row["error"] = str(error)
            rows.append(row)
        return Answer(render_list(rows, str(self.root)).encode())

    def _state(self, runs: Mapping[str, Path]) -> Answer:
        outlines, stamps = [], []
        for name, root in runs.items():
            stamps.append(f"{name}\0{_stamp(root)}")
            try:
                outlines.append(self._outline(name, root))
            except CertifyError:
                continue
        going = [o for o in outlines if o.running]
        state = {
            "running": bool(going),
            "done": sum(o.done for o in going),
            "total": sum(o.total for o in going),
            "version": hashlib.sha256("\0".join(stamps).encode()).hexdigest()[:16],
        }
        return Answer(json.dumps(state).encode(), "application/json")

    def _outline(self, name: str, root: Path) -> Outline:
        stamp = _stamp(root)
        with self._lock:
            kept = self._outlines.get(name)
        if kept is None or kept[0] != stamp:
            kept = stamp, read_outline(root)
            with self._lock:
                self._outlines[name] = kept
        return kept[1]

    def _page(self, name: str, root: Path) -> bytes:
        stamp = _stamp(root)
        with self._lock:  # one at a time: a page takes a second of a core, which the run needs more
            kept = self._pages.pop(name, None)
            if kept is None or kept[0] != stamp:
                kept = stamp, render([read_folder(root)], live=f"/state/{quote(name)}").encode()
            self._pages[name] = kept
            while len(self._pages) > KEPT_PAGES:
                del self._pages[next(iter(self._pages))]
        return kept[1]


class Server(ThreadingHTTPServer):
    """A site at an address; use as a context manager, with serve_forever. port 0: any that is free."""

    daemon_threads = True

    def __init__(self, site: Site, host: str, port: int) -> None:
        self.site = site
        self.hosts = None if not is_loopback(host) else {host.lower(), "localhost", "127.0.0.1", "::1"}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"{host}:{port} cannot be listened on: {error.strerror or error}; give another --port or --host"
            ) from error

    def server_bind(self) -> None:
        """As the base class, which asks the network for its name besides, and may wait for that."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def is_loopback(host: str) -> bool:
    """Does an address stay on this machine?"""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = REQUEST_SECONDS
    server_version = "certify"
    sys_version = ""

    def do_GET(self) -> None:
        if self.server.hosts is not None and _host(self.headers.get("Host", "")) not in self.server.hosts:
            answer = Answer(
                b"This server answers on this machine's own address only.", "text/plain", HTTPStatus.FORBIDDEN
            )
        else:
            try:
                answer = self.server.site.answer(self.path)
            except Exception:
                _log.exception("a page could not be made: %s", self.path)
                answer = Answer(b"This page could not be made.", "text/plain", HTTPStatus.INTERNAL_SERVER_ERROR)
        self.send_response(answer.status)
        for name, value in (
            ("Content-Type", answer.kind),
            ("Content-Length", str(len(answer.body))),
            ("Content-Security-Policy", f"{policy(live=True)}; frame-ancestors 'none'"),
            ("X-Content-Type-Options", "nosniff"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_GET

    def log_message(self, format: str, *values: Any) -> None:
        _log.debug(format, *values)


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{header}").hostname or "").lower()
    except ValueError:
        return ""


def _changed(root: Path) -> float:
    try:
        return (root / DATABASE).stat().st_mtime
    except OSError:
        return 0.0


def _stamp(root: Path) -> str:
    """Another one whenever the run has gone on, ended or stopped."""
    try:
        file = (root / DATABASE).stat()
        return f"{file.st_mtime_ns}-{file.st_size}-{is_running(root)}"
    except OSError:
        return "gone"
