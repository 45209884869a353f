"""Rows of a table on the host, in arrays that a device can take."""

import mmap
import weakref
from collections import defaultdict
from typing import Any

import numpy as np
from jaxtyping import Int

from jsage.typing import HostArray

_FAULT = 2**16  # bytes that one page fault maps at most
_PART = 512
_PRIVATE = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}


class RowReader:
    """A table `[num_rows, d]` in memory, or in a file that is mapped into it.

    `resident_bytes` bounds how much of the file is mapped at a time, from 32 MiB on: pages are let go, and
    found again in the system's cache if they are still there, which takes longer than to keep them. None
    leaves that to the system, which takes clean pages back whenever it needs memory.

    Raises ValueError for `resident_bytes` and a table that is no read-only map.

    >>> RowReader(np.eye(3, dtype=np.float32)).read(np.array([2, 0]), 2)
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """

    def __init__(self, table: HostArray, resident_bytes: int | None = None) -> None:
        self._mapping = None if resident_bytes is None else _mapping(np.asanyarray(table))
        self._table, self._resident = np.asarray(table), resident_bytes or 0
        self._free: defaultdict[int, list[mmap.mmap]] = defaultdict(list)

    def read(self, ids: Int[np.ndarray, " num_ids"], size: int) -> np.ndarray:
        """`table[ids]` at the head of a `[size, d]` array, whose other rows are arbitrary. For many threads.

        The array's memory is lent again when nothing refers to it any more, no running program either: memory
        that was used before costs no page faults. It starts a page, so a device that is the CPU takes it
        as it is, without a copy.
        """
        shape, dtype = (size, self._table.shape[1]), self._table.dtype
        length = max(size * shape[1] * dtype.itemsize, 1)
        free = self._free[length]
        try:
            memory = free.pop()
        except IndexError:
            memory = mmap.mmap(-1, length, **_PRIVATE)
        flat = np.frombuffer(memory, dtype, size * shape[1])
        weakref.finalize(flat.base, free.append, memory).atexit = False
        rows = flat.reshape(shape)
        self._gather(ids, rows[: len(ids)])
        return rows

    def _gather(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """With a bound: in the table's order, letting go of what was read."""
        if self._mapping is None:
            np.take(self._table, ids, axis=0, out=rows, mode="clip")
            return
        order, began = np.argsort(ids), 0
        for start in range(0, len(ids), _PART):
            part = order[start : start + _PART]
            rows[part] = self._table[ids[part]]
            span = (int(ids[part[-1]]) - int(ids[order[began]])) * self._table.strides[0]
            if min(span, (start - began) * _FAULT) > self._resident - _PART * _FAULT:
                self._mapping.madvise(mmap.MADV_DONTNEED)
                began = min(start + _PART, len(ids) - 1)
        self._mapping.madvise(mmap.MADV_DONTNEED)


def _mapping(table: np.ndarray) -> mmap.mmap:
    """The memory map that a table lies in, if letting go of its pages loses nothing."""
    base: Any = table
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, mmap.mmap) or getattr(table, "mode", "c") == "c":
        raise ValueError(
            f"resident_bytes needs a table in a memory map of mode 'r', got {type(table).__name__}: open a "
            "graph directory by jsage.data.open, or leave resident_bytes out"
        )
    return base
