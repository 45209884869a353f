"""Requests joined to batches: nodes wait until a batch is full, or a few milliseconds are over."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np


class QueueFullError(Exception):
    """More rows wait than the queue may hold."""


class Item(NamedTuple):
    """A part of a request: at most one batch of nodes."""

    nodes: np.ndarray
    rows: asyncio.Future
    deadline: float
    """When it goes at the latest, if the device is free."""


class Batcher:
    """One batch runs at a time, in a thread of `pool`; what comes meanwhile is the next one.

    `run`: nodes, at most `size` of them, to rows; it must not fail for what some of its nodes are, so check
    them before. `wait`: seconds for which a batch that is not full waits. `limit`: rows that may queue.
    """

    def __init__(self, run: Callable, size: int, pool: Executor, *, wait: float, limit: int) -> None:
        self.waiting = 0
        """Rows in the queue."""
        self._run, self._size, self._pool, self._wait, self._limit = run, size, pool, wait, limit
        self._queue: deque[Item] = deque()
        self._changed = asyncio.Event()

    async def submit(self, nodes: np.ndarray) -> np.ndarray:
        """The rows of these nodes; QueueFullError at once where the queue has no space for them."""
        if self.waiting + len(nodes) > self._limit:
            raise QueueFullError(f"{self.waiting} rows wait, at most {self._limit} may")
        loop, deadline = asyncio.get_running_loop(), time.monotonic() + self._wait
        parts = [nodes[i : i + self._size] for i in range(0, len(nodes), self._size)] or [nodes]
        items = [Item(part, loop.create_future(), deadline) for part in parts]
        self._queue.extend(items)
        self.waiting += len(nodes)
        self._changed.set()
        return np.concatenate(await asyncio.gather(*(item.rows for item in items)))

    async def work(self) -> None:
        """Run batches until cancelled."""
        while True:
            if batch := await self._next():
                await self._answer(batch)

    async def _next(self) -> list[Item]:
        """The next batch: full, or due. Parts that nobody waits for any more are left out."""
        while not self._queue:
            self._changed.clear()
            await self._changed.wait()
        while self.waiting < self._size and (left := self._queue[0].deadline - time.monotonic()) > 0:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                break
        batch: list[Item] = []
        space = self._size
        while self._queue and len(self._queue[0].nodes) <= space:
            item = self._queue.popleft()
            self.waiting -= len(item.nodes)
            if not item.rows.done():
                batch.append(item)
                space -= len(item.nodes)
        return batch

    async def _answer(self, batch: list[Item]) -> None:
        nodes = np.concatenate([item.nodes for item in batch])
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._pool, self._run, nodes)
        except Exception as error:
            for item in batch:
                if not item.rows.done():
                    item.rows.set_exception(error)
            return
        ends = np.cumsum([len(item.nodes) for item in batch])
        for item, part in zip(batch, np.split(rows, ends[:-1]), strict=True):
            if not item.rows.done():
                item.rows.set_result(part)
