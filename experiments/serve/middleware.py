"""What happens to every request, whatever its path."""

import time
from contextlib import suppress
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from experiments.serve.answers import answer

PATHS = ("/embed", "/embed_new", "/predict", "/healthz", "/metrics", "/openapi.json")
PIECE = 65536
"""Bytes of an answer that are given to the connection at once."""


class Checked:
    """Refuses headers that are too long, and a body of two lengths, which a proxy may cut elsewhere."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            size = sum(len(name) + len(value) for name, value in headers.raw) + len(scope["path"])
            if size > self._limit:
                app = answer(431, f"headers have at most {self._limit} bytes, got {size}", close=True)
            elif "content-length" in headers and "transfer-encoding" in headers:
                app = answer(400, "send Content-Length or Transfer-Encoding, got both", close=True)
        await app(scope, receive, send)


class Measured:
    """Counts every answer and its time; hands long ones over as the client takes them."""

    def __init__(self, app: ASGIApp, service: Any) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), "gone"

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                if scope["app"].state.stopping():  # so that the client sends nothing more here
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
            body = message.get("body", b"")
            while len(body) > PIECE:
                await send({"type": "http.response.body", "body": body[:PIECE], "more_body": True})
                body = body[PIECE:]
            await send({**message, "body": body} if body else message)

        path = scope["path"] if scope["path"] in PATHS else "other"
        try:
            with suppress(ClientDisconnect):
                await self._app(scope, receive, sent)
        except Exception:
            status = "500"
            raise
        finally:
            self._service.held -= scope.get("held", 0)
            self._service.requests.labels(path, status).inc()
            self._service.seconds.labels(path).observe(time.perf_counter() - began)
