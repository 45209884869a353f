"""What a call of `shard_edges` is given: how it may work, what it cannot do, what tells it from another."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jsage._internal.files import checksum
from jsage.data.formats.arrays import bytes_of
from jsage.data.shards.edge_sort import MOST_KEYS
from jsage.data.shards.edge_sources import EdgeSource
from jsage.data.shards.layout import describe_placement
from jsage.data.shards.writer import Tables, locate_splits
from jsage.graph import Placement, contiguous

_VERSION = 1
_LEAST = 2**13


class Progress(NamedTuple):
    """What a `progress` callback gets: edges that are read, edges that are written, rows of the tables.

    >>> Progress("read", 5, None).stage
    'read'
    """

    stage: str
    """`"read"`, `"write"` or `"tables"`."""
    done: int
    total: int | None
    """None where it is not known before the end."""


class Sorting(NamedTuple):
    """How much memory the arrays in work may take, beside the interpreter, and whom to tell of progress.

    Labels and splits that are arrays in memory come on top.

    >>> Sorting().memory_bytes
    1000000000
    """

    memory_bytes: int = 10**9
    seconds: float = 1.0
    """How often what is done of a shard is noted: so much work, at most, is done again after a kill."""
    progress: Callable[[Progress], None] | None = None


class Balanced(NamedTuple):
    """To be placed by `jsage.graph.balanced`, of in-degrees that are counted while the edges are sorted.

    >>> Balanced(num_nodes=10, shards=2).node_cost
    1
    """

    num_nodes: int
    shards: int
    node_cost: int = 1


def check_call(placement: Placement | Balanced, tables: Tables, sorting: Sorting) -> None:
    """ValueError, before any work, for what could not be finished.

    >>> check_call(Balanced(10**9, 16), Tables(), Sorting())
    Traceback (most recent call last):
    ValueError: to balance 1000000000 nodes takes 24000000000 bytes, but memory_bytes is 1000000000: give ...
    """
    if isinstance(placement, Balanced):
        if (needed := 24 * placement.num_nodes) > sorting.memory_bytes:
            raise ValueError(
                f"to balance {placement.num_nodes} nodes takes {needed} bytes, but memory_bytes is "
                f"{sorting.memory_bytes}: give more, or place nodes by contiguous or hashed"
            )
        if placement.node_cost < 0:
            raise ValueError(f"node_cost must be at least 0, got {placement.node_cost}")
        placement = contiguous(placement.num_nodes, placement.shards)
    if placement.size > MOST_KEYS:
        raise ValueError(f"at most 2^39 placed ids can be sorted, got {placement.size}")
    if sorting.memory_bytes < _LEAST:
        raise ValueError(f"memory_bytes must be at least {_LEAST}, got {sorting.memory_bytes}")
    locate_splits(tables, placement)


def describe_call(
    source: EdgeSource, placement: Placement | Balanced, tables: Tables, symmetrize: bool, sorting: Sorting
) -> dict[str, Any]:
    """What another call must share with this one to go on with its work.

    >>> from jsage.data import edge_arrays
    >>> from jsage.graph import contiguous
    >>> describe_call(edge_arrays([]), contiguous(4, 2), Tables(), False, Sorting())["memory_bytes"]
    1000000000
    """
    if isinstance(placement, Balanced):
        placed: dict[str, Any] = placement._asdict()
    else:
        placed = describe_placement(placement)
    known = source.describe()
    return {
        "version": _VERSION,
        "edges": known and checksum(known),
        "num_edges": source.count(),
        "placement": placed if len(str(placed)) < 200 else checksum(placed),
        "tables": {name: _told(table) for name, table in tables._asdict().items() if table is not None},
        "symmetrize": symmetrize,
        "memory_bytes": sorting.memory_bytes,
    }


def _told(table: np.ndarray) -> str:
    """What tells a table from another: a mapped file's name, size and time of change, else its values."""
    about = f"{table.dtype.name} {list(table.shape)}"
    if isinstance(table, np.memmap) and (file := table.filename) is not None:
        status = Path(file).stat()
        return f"{about} {Path(file).name} {status.st_size} {status.st_mtime_ns}"
    return f"{about} {hashlib.sha256(bytes_of(table)).hexdigest()}"
