"""uvicorn's connections, with an end to all that a client may draw out."""

import asyncio
import json
import time
from http import HTTPStatus
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

PARSING = 1.0
"""Seconds of the processor's time for reading one request: a body in chunks of one byte takes more."""


class Connection(H11Protocol):
    """Headers and requests have their time, answers not read are dropped, the longest idle make room.

    uvicorn's own limits begin with the first answer. `config.app.state` has the `limits`, and `refused`,
    which is told the status of each answer given here.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        app: Any = config.app
        self.limits, self.refused = app.state.limits, app.state.refused
        self.since = self.loop.time()
        """When it began to wait for a request."""
        self._spent = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Wait for the first request; too many connections close the one that has been idle for longest."""
        super().connection_made(transport)
        self._within(self.limits.idle)
        if len(self.connections) > self.limits.connections:
            others: Any = self.connections - {self}
            if idle := [other for other in others if other.idle]:
                oldest = min(idle, key=lambda other: other.since)
                self.connections.discard(oldest)
                oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """The time of a request begins when its headers are whole."""
        before, began = self.cycle, time.thread_time()
        super().data_received(data)
        if self.cycle is not before:
            self._spent = 0.0
            self._within(3 * self.limits.seconds)  # for the body, for the answer, and to take it
        self._spent += time.thread_time() - began
        if self._spent > PARSING and not self.transport.is_closing():
            self._refuse(400, f"the request takes more than {PARSING:g} s to read: send it in larger chunks")

    def on_response_complete(self) -> None:
        """Wait for the next request, which may be there already."""
        before = self.cycle
        super().on_response_complete()
        self.since = self.loop.time()
        self._within(self.limits.idle if self.cycle is before else 3 * self.limits.seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more to wait for."""
        super().connection_lost(exc)
        if self._timer:
            self._timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """What h11 cannot read."""
        self._refuse(400, "this is no HTTP request, or its headers are too long")

    def _within(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, f"the headers must arrive within {self.limits.idle:g} s")
        self.transport.abort()

    def _refuse(self, status: int, reason: str) -> None:
        """An answer in place of the application's, unless that has begun; the end of the connection."""
        self.refused(status)
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": reason}).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
            headers.append(("connection", "close"))
            phrase = HTTPStatus(status).phrase.encode()
            begin = h11.Response(status_code=status, headers=headers, reason=phrase)
            for event in (begin, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
