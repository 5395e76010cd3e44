"""The server of the page: Python's own, in threads; it answers this machine alone unless told otherwise, and others only with a token."""

from __future__ import annotations

import contextlib
import errno
import hmac
import io
import ipaddress
import json
import logging
import math
import os
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler
from importlib.resources import files
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

import torch
from omegaconf import DictConfig

from distill.cameras import orbit
from distill.live.desk import Desk, Look
from distill.viewing import DISTANCE, FOV_Y_DEG

log = logging.getLogger(__name__)

#: Sent with everything: nothing is loaded from elsewhere, and no other site may frame or read it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
#: Seconds that a server waits at its end for a page that is open to fetch the last words.
FAREWELL = 2.0
#: Seconds since its last question in which a page counts as open: it asks twice a second, but an export may keep it waiting.
OPEN = 30.0


class Reply(NamedTuple):
    """An answer: its kind, its bytes, and its status."""

    kind: str
    body: bytes
    status: int = 200
    step: int | None = None


def words(text: str, status: int = 200) -> Reply:
    """Answer with a line of text."""
    return Reply("text/plain; charset=utf-8", text.encode(), status)


def number(query: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    """Read a number from a query.

    Raises:
        ValueError: it is none, or not in [low, high].
    """
    text = query.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}], got {text[:40]!r}")
    return value


def page(desk: Desk, query: Mapping[str, str]) -> Reply:
    return Reply("text/html; charset=utf-8", files("distill.live").joinpath("page.html").read_bytes())


def script(desk: Desk, query: Mapping[str, str]) -> Reply:
    return Reply("text/javascript; charset=utf-8", files("distill.live").joinpath("page.js").read_bytes())


def state(desk: Desk, query: Mapping[str, str]) -> Reply:
    """Answer with what ``Desk.state`` returns, as JSON."""
    asked = [int(number(query, name, 0, 0, 1e9)) for name in ("run", "since")]
    return Reply("application/json", json.dumps(desk.state(*asked)).encode())


def frame(desk: Desk, query: Mapping[str, str]) -> Reply:
    """Answer with a JPEG of the scene from a camera that looks at the origin."""
    from PIL import Image

    azimuth = torch.tensor([number(query, "azimuth", 0, -1e6, 1e6)])
    elevation = torch.tensor([number(query, "elevation", 0, -90, 90)])
    cameras = orbit(azimuth, elevation, number(query, "distance", DISTANCE, 1.0, 20.0), FOV_Y_DEG)
    size = int(number(query, "size", 96, 16, 512))
    seen = desk.look(Look(cameras, int(number(query, "scene", 0, 0, 1e6)), size))
    if seen.picture is None:
        return words(seen.why, 503)
    file = io.BytesIO()
    Image.fromarray(seen.picture.numpy()).save(file, "JPEG", quality=92)
    return Reply("image/jpeg", file.getvalue(), step=seen.step)


def preview(desk: Desk, query: Mapping[str, str]) -> Reply:
    """Answer with the preview of a step; only its number is taken from the query, and so no path can be."""
    path = desk.folder / "previews" / f"step-{int(number(query, 'step', 0, 0, 1e9)):06d}.png"
    if desk.run:  # before the first one, its folder is not known
        with contextlib.suppress(OSError):
            return Reply("image/png", path.read_bytes())
    return words("there is no preview of this step", 404)


GETS: dict[str, Callable[[Desk, Mapping[str, str]], Reply]] = {
    "/": page, "/page.js": script, "/state": state, "/frame": frame, "/preview": preview,
}  # fmt: skip
POSTS = {"/pause": "pause", "/resume": "resume", "/checkpoint": "checkpoint", "/stop": "stop"}


def refusal(method: str, path: str, headers: Message, address: str) -> str | None:
    """Say why a request is not answered, None if it is.

    A page of another site can send requests here from the user's browser. Under the name of its own that it points at this
    machine (DNS rebinding), the name is in ``Host``; else the browser says where the request is from, in ``Origin`` or
    ``Sec-Fetch-Site``.

    Args:
        method: ``GET`` or ``POST``.
        path: without the query.
        headers: of the request.
        address: that the server listens at.
    """
    host, origin = headers.get("Host", ""), headers.get("Origin")
    if not is_here(host, address):
        return f"this server does not go by the name {host[:80]!r}; use its number or localhost"
    if origin not in (None, f"http://{host}") or (method == "POST" and origin is None):
        return "this request is not from the run's own page"
    if path != "/" and headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return "this request is from another site's page"
    return None


def is_here(host: str, address: str) -> bool:
    """Tell whether a ``Host`` header can only mean this server: an IP number, which no rebinding has, or a name of its own."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    own = {"localhost", address.lower()}
    return name in (own if is_loopback(address) else own | {socket.gethostname().lower()})


def is_loopback(address: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return address == "localhost"


class Server(socketserver.ThreadingTCPServer):
    """Listens from its creation on; ``http.server.HTTPServer`` would look its own name up, which can take seconds."""

    daemon_threads = True
    allow_reuse_address = os.name != "nt"

    def __init__(self, address: str, port: int, desk: Desk) -> None:
        self.address, self.desk = address, desk
        # The page can stop the run. It asks by paths relative to its own, which so carry the token.
        self.root = "/" if is_loopback(address) else f"/{secrets.token_urlsafe(16)}/"
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("a viewer went away", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = 10

    def do_GET(self) -> None:
        self._answer("GET", GETS)

    def do_POST(self) -> None:
        def order(what: str) -> Callable[[Desk, Mapping[str, str]], Reply]:
            def carry_out(desk: Desk, query: Mapping[str, str]) -> Reply:
                desk.ask(what)
                return words("at the end of this step")

            return carry_out

        self._answer("POST", {path: order(what) for path, what in POSTS.items()})

    def _answer(self, method: str, known: Mapping[str, Callable[[Desk, Mapping[str, str]], Reply]]) -> None:
        whole, _, query = self.path.partition("?")
        root = self.server.root
        path = "/" + whole[len(root) :]
        why = refusal(method, path, self.headers, self.server.address)
        if why:
            reply = words(why, 403)
        elif not hmac.compare_digest(whole[: len(root)].encode(), root.encode()):
            reply = words(
                "this address lacks the run's token; open the whole address that the run has printed", 403
            )
        elif path not in known:
            reply = words("there is nothing here", 404)
        else:
            try:
                reply = known[path](self.server.desk, dict(parse_qsl(query)))
            except ValueError as error:
                reply = words(str(error), 400 if method == "GET" else 409)
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        own = {"Content-Type": reply.kind, "Content-Length": str(len(reply.body))}
        if reply.step is not None:
            own["X-Step"] = str(reply.step)
        for name, value in {**HEADERS, **own}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


def listen(address: str, port: int, desk: Desk) -> Server:
    """Listen at a port, or where it is taken at a free one.

    Raises:
        ValueError: that is not allowed, or the address is not of this machine.
    """
    if not address.strip():
        raise ValueError(
            "view_address must be an address of this machine, got an empty one; leave it out for this machine alone, or give "
            "0.0.0.0 for all networks"
        )
    try:
        return Server(address, port, desk)
    except (OSError, TypeError, UnicodeError) as error:  # what is no host name fails to be encoded
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            print(f"distill: view_port={port} is taken; another one is used", file=sys.stderr)
            return listen(address, 0, desk)
        raise ValueError(
            f"the page cannot be served at view_address={address} view_port={port} ({getattr(error, 'strerror', None) or error}); "
            "view_address must be an address of this machine, and view_port a port that is free, or 0"
        ) from error


@contextlib.contextmanager
def watched(config: DictConfig) -> Iterator[Desk | None]:
    """Serve the page of a run with ``view=true`` for as long as the context lasts; gives None for a run without.

    Raises:
        ValueError: there is no such address or port.
    """
    if not config.view:
        yield None
        return
    desk = Desk()
    server = listen(config.view_address, config.view_port, desk)
    shown = f"[{server.address}]" if ":" in server.address else server.address
    print(
        f"distill: watch at http://{shown}:{server.server_address[1]}{server.root}",
        file=sys.stderr,
        flush=True,
    )
    if not is_loopback(server.address):
        print(
            f"distill: view_address={server.address} can be reached from the network, unencrypted: whoever knows the address above, with "
            "its token, can watch the run, pause it and stop it",
            file=sys.stderr,
            flush=True,
        )
    threading.Thread(target=server.serve_forever, args=[0.1], name="view", daemon=True).start()
    try:
        yield desk
        desk.say("finished", f"the results are in {desk.folder}" if desk.run else "")
    except Exception as error:
        desk.say("ended", " ".join(str(error).split()) or type(error).__name__)
        raise
    finally:
        take_leave(desk)
        server.shutdown()
        server.server_close()


def take_leave(desk: Desk) -> None:
    """Wait a moment for a page that is open, so that it can fetch how the run ended."""
    now = time.monotonic()
    if now - desk.asked_at < OPEN:
        while desk.asked_at < now and time.monotonic() < now + FAREWELL:
            time.sleep(0.05)
        time.sleep(0.1)  # for the answer to leave
