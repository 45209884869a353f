"""Checks of what callers pass, on the host: ValueErrors that say what was wrong, and what to do."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jsage.typing import HostArray

INT32 = 2**31
"""Ids and offsets are int32: all are below it."""


def check_ids(
    values: HostArray | Sequence[int] | Sequence[float],
    limit: int,
    name: str,
    *,
    what: str = "node ids",
    num_new: int = 0,
) -> np.ndarray:
    """`values` as an int32 vector of ids in `0 .. limit - 1`, and of `-1 - i` for new node `i` of `num_new`.

    >>> check_ids([2, -1], 3, "src", num_new=1)
    array([ 2, -1], dtype=int32)
    >>> check_ids([2, 3], 3, "seeds")
    Traceback (most recent call last):
    ValueError: seeds must be node ids in 0 .. 2, got 3
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one axis, got shape {array.shape}")
    if len(array) >= INT32:
        raise ValueError(
            f"{name} has {len(array)} entries, but a graph holds fewer than 2^31 edges (offsets are int32): "
            "split it by destination into several graphs"
        )
    if len(array) == 0:
        return np.empty(0, np.int32)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {array.dtype}: convert it with astype(np.int32)")
    for extreme in (int(array.min()), int(array.max())):
        if not -num_new <= extreme < limit:
            more = f", or -1 .. -{num_new} (-1 - i is new node i)" if num_new else ""
            raise ValueError(f"{name} must be {what} in 0 .. {limit - 1}{more}, got {extreme}")
    return array.astype(np.int32, copy=False)


def check_pairs(one: np.ndarray, other: np.ndarray, names: tuple[str, str], what: str = "an edge") -> None:
    """Two arrays of one length.

    >>> check_pairs(np.zeros(2), np.zeros(1), ("src", "dst"))
    Traceback (most recent call last):
    ValueError: src and dst must have one entry an edge each, got 2 and 1
    """
    if len(one) != len(other):
        raise ValueError(
            f"{names[0]} and {names[1]} must have one entry {what} each, got {len(one)} and {len(other)}"
        )


def check_edge_rows(name: str, values: Any, num_edges: int) -> np.ndarray:
    """Data of edges as an array of one row an edge; integers of 64 bits come back as int32.

    >>> check_edge_rows("time", [5, 2**40], 2)
    Traceback (most recent call last):
    ValueError: edge_data 'time' must fit int32, got 5 .. 1099511627776: rescale it
    """
    array = np.asarray(values)
    if array.ndim == 0 or len(array) != num_edges:
        raise ValueError(
            f"edge_data {name!r} must have {num_edges} rows, one an edge, got shape {array.shape}"
        )
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and array.size:
        if max(-int(array.min()) - 1, int(array.max())) >= INT32:
            raise ValueError(
                f"edge_data {name!r} must fit int32, got {array.min()} .. {array.max()}: rescale it"
            )
        return array.astype(np.int32)
    return array


def check_fanouts(fanouts: Sequence[Any]) -> None:
    """One fanout a layer, one layer at least.

    >>> check_fanouts(())
    Traceback (most recent call last):
    ValueError: expected one fanout a layer, got none: pass for instance fanouts=(25, 10)
    """
    if not fanouts:
        raise ValueError("expected one fanout a layer, got none: pass for instance fanouts=(25, 10)")


def check_fanout(fanout: int) -> None:
    """A number of neighbors, 1 at least.

    >>> check_fanout(0)
    Traceback (most recent call last):
    ValueError: a fanout is a positive number of neighbors, got 0: leave the hop out instead
    """
    if fanout < 1:
        raise ValueError(
            f"a fanout is a positive number of neighbors, got {fanout}: leave the hop out instead"
        )
