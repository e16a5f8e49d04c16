"""What every request has to pass before it reaches the interface.

A page of another site must not reach a server that listens on 127.0.0.1: neither by a request of
its own (Sec-Fetch-Site, Origin) nor under a name that it has made to point here (Host). A link to
the start page may be followed from anywhere, for that changes nothing. With a password, every
request carries it (HTTP Basic), files and events too. Requests that the interface has no use for
are refused: uploads, and those that make gradio fetch an address.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import socket
from collections.abc import Collection, Mapping
from http import HTTPStatus
from urllib.parse import unquote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sds3d.ui.config import is_loopback

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio's frontend is made of inline scripts, and compiles templates.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_REFUSED = ("/upload", "/proxy=", "/component_server", "/dev/", "/vibe", "/workflow")
"""Routes of gradio below its prefix, or without one."""


def trusted_hosts(host: str, others: Collection[str] = ()) -> frozenset[str]:
    """The names under which a server on `host` may be asked for, those of `others` among them.

    Addresses are judged apart.
    """
    names = {"localhost", host.lower(), *(name.lower().strip("[]") for name in others)}
    if not is_loopback(host):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return frozenset(names)


class Guard:
    """An ASGI application that lets only proper requests through to another one.

    `host` is what the server listens on, `trusted` are further names of it, `auth` USER:PASSWORD
    or None.
    """

    def __init__(
        self, app: ASGIApp, *, host: str, auth: str | None, trusted: Collection[str] = ()
    ) -> None:
        self._app = app
        self._hosts = trusted_hosts(host, trusted)
        self._is_local = is_loopback(host)
        self._auth = None if auth is None else auth.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no websockets here
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        refusal = self.refusal(scope["method"], scope["path"], headers)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer[name] = value
                # Gradio allows any origin to read; nobody but this page has to.
                for name in ("access-control-allow-origin", "access-control-allow-credentials"):
                    del answer[name]
            await send(message)

        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        status, text = refusal
        asks = {"WWW-Authenticate": 'Basic realm="sds3d", charset="UTF-8"'}
        response = PlainTextResponse(
            text, status, headers=asks if status == HTTPStatus.UNAUTHORIZED else None
        )
        await response(scope, receive, send_with_headers)

    def refusal(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> tuple[HTTPStatus, str] | None:
        """Why a request is not let through; None where it is."""
        host = headers.get("host", "")
        if not self._is_trusted(host):
            return HTTPStatus.MISDIRECTED_REQUEST, "this server is not known under that name\n"
        if self._is_cross_site(method, path, headers, host):
            return HTTPStatus.FORBIDDEN, "requests from other sites are refused\n"
        if self._auth is not None and not self._knows_password(headers.get("authorization", "")):
            return HTTPStatus.UNAUTHORIZED, "name and password, please\n"
        if _is_of_no_use(path):
            return HTTPStatus.NOT_FOUND, "there is nothing here\n"
        return None

    def _is_trusted(self, host: str) -> bool:
        name = (urlsplit(f"//{host}").hostname if _is_plain(host) else None) or ""
        if name in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # A number cannot be made to point elsewhere, as a name can.
        return address.is_loopback or not self._is_local

    @staticmethod
    def _is_cross_site(method: str, path: str, headers: Mapping[str, str], host: str) -> bool:
        origin = headers.get("origin")
        if origin is not None and _authority(origin) != host.lower():
            return True
        site = headers.get("sec-fetch-site", "none")
        if site in ("same-origin", "none"):
            return False
        # Other ports of this machine are "same-site", and no friends for that.
        is_link = headers.get("sec-fetch-mode") == "navigate"
        is_page = headers.get("sec-fetch-dest", "document") == "document"
        return not (method == "GET" and path == "/" and is_link and is_page)

    def _knows_password(self, authorization: str) -> bool:
        kind, _, encoded = authorization.partition(" ")
        if kind.lower() != "basic" or self._auth is None:
            return False
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(given, self._auth)


def _is_plain(host: str) -> bool:
    return bool(host) and not set(host) & set("/\\@?# ")


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_of_no_use(path: str) -> bool:
    path = unquote(path).removeprefix("/gradio_api")
    if path.startswith("/file="):
        # gradio would fetch an address, from here.
        return "//" in path or ":" in path.removeprefix("/file=")[2:]
    return path.startswith(_REFUSED)
