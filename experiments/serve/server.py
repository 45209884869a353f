"""A server that loses no request when it is told to stop."""

import asyncio
import select
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn


class Server(uvicorn.Server):
    """A server that, told to stop, takes no more connections, and closes each with its next answer.

    A client that keeps its connection may be sending at that moment: were it closed at once, the request
    would be lost. A connection without a request is closed after `drain` seconds.
    """

    def __init__(self, config: uvicorn.Config, drain: float) -> None:
        super().__init__(config)
        self.servers = []  # a signal may come before any listens
        self.stopping = False
        self._told = False
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal starts the end; the next one hurries it."""
        if self._told:
            super().handle_exit(sig, frame)
            return
        self._told = True
        exit = partial(super().handle_exit, sig, frame)
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(self._close, exit, loop.time() + self._drain)

    def _close(self, exit: Callable[[], None], latest: float, *, quiet: bool = False) -> None:
        """Stop to listen, once nobody waits to be let in: the system resets who still does. But not for ever.

        Connections that asyncio accepted in this turn of its loop it lets in in the next: hence two turns in
        which nobody came. Only then are answers told to close, for their clients would come again.
        """
        loop = asyncio.get_running_loop()
        sockets = [one for listening in self.servers for one in listening.sockets]
        waiting = bool(sockets and select.select(sockets, [], [], 0)[0])
        if (waiting or not quiet) and loop.time() < latest:
            loop.call_soon(partial(self._close, exit, latest, quiet=not waiting))
            return
        for listening in self.servers:
            listening.close()
        self.stopping = True
        self._leave(exit, loop.time() + self._drain)

    def _leave(self, exit: Callable[[], None], deadline: float) -> None:
        """End when no connection is open any more, or at the deadline."""
        loop = asyncio.get_running_loop()
        if self.server_state.connections and loop.time() < deadline:
            loop.call_later(0.02, self._leave, exit, deadline)
        else:
            exit()
