"""Times as int32 ticks since an origin, and nodes that are known from a time on; on the host."""

from datetime import timedelta
from typing import Any

import numpy as np
from jaxtyping import Int, Num

from jsage._internal.checks import INT32, host_array
from jsage.graph.graph import Graph, TimeSortedGraph, edges, from_edges
from jsage.graph.search import sort_by_time
from jsage.typing import HostArray

ALWAYS = -INT32
"""The time of what has none: earlier than all others, so it is visible at any of them."""
_STEPS = {"W": 7, "D": 24, "h": 60, "m": 60, "s": 1000, "ms": 1000, "us": 1000, "ns": 1000, "ps": 1000}
_UNITS = [*_STEPS, "fs"]


def ticks(values: Any, unit: Any = 1, origin: Any = 0) -> Int[np.ndarray, "*shape"]:
    """How many whole `unit`s each time is after `origin`, as int32: exact, or refused by a ValueError.

    Dates (`datetime64`) take a unit of time, `"s"`, `"h"` or any `timedelta64`, and a date as origin;
    durations (`timedelta64`) a unit and a duration, or whole numbers of their own unit; whole numbers, floats
    too if they are, a whole number each. One unit and one origin go with a data set, in training and after.
    What is no whole number of units is refused, and what int32 does not hold, `ALWAYS` (-2^31) among it; so
    are NaT and NaN.

    >>> dates = np.array(["2024-03-01T00:30", "2024-02-29T23:00"], "datetime64[m]")
    >>> ticks(dates, np.timedelta64(30, "m"), "2024-03-01")
    array([ 1, -2], dtype=int32)
    >>> ticks(dates, "h", "2024-03-01")
    Traceback (most recent call last):
    ValueError: times must be whole numbers of units, got 2024-03-01T00:30 of 1 hours since 2024-03-01: ...
    """
    array = host_array(values, "times")
    if array.dtype.kind in "mM":
        own, dates = np.datetime_data(array.dtype)[0], array.dtype.kind == "M"
        if dates and isinstance(origin, int | np.integer):
            raise ValueError(
                f"dates are counted from a date, got origin {origin}: pass '2024-01-01' or the like"
            )
        start = np.asarray(origin, "datetime64") if dates else np.asarray(_duration(origin, own))
        step = np.asarray(np.timedelta64(1, unit) if isinstance(unit, str) else _duration(unit, own))
        counts, (first,), (size,) = _counts(array, start.reshape(1), step.reshape(1))
    else:
        step, start, counts = unit, origin, _whole(array)
        first, size = (int(_whole(np.asarray(x)).ravel()[0]) for x in (origin, unit))
    if size <= 0:
        raise ValueError(f"a unit is a positive time, got {step}: origin and direction are in `origin`")
    _check_fit(counts, int(first), int(size), array, (step, start))
    return np.asarray((counts - first) // size, np.int32)


def known_from(graph: Graph, known: Num[HostArray, " num_nodes"]) -> TimeSortedGraph:
    """The graph with each edge's time no earlier than that from which its source is known, rows in order.

    An edge is visible from `max(known[src], time)`; of a graph without times, from `known[src]`. A node that
    was always there has the time `ALWAYS`. Keep an event's own time under another name where it is read.
    Raises ValueError for times that are not one a node, or not of the kind of the edges'.

    >>> from jsage.graph import from_edges
    >>> graph = from_edges([1, 2, 3], [0, 0, 0], num_nodes=4, time=[10, 20, 30])
    >>> known_from(graph, np.array([ALWAYS, 25, 5, ALWAYS], np.int32)).edge_data["time"].tolist()
    [20, 25, 30]
    """
    since, (src, dst) = host_array(known, "known"), map(np.asarray, edges(graph))
    if since.shape != (graph.num_nodes,):
        raise ValueError(f"known must hold one time a node, {graph.num_nodes}, got shape {since.shape}")
    data = {name: np.asarray(rows) for name, rows in graph.edge_data.items()}
    time = data.get("time", np.full(src.shape, ALWAYS, np.int32))
    if "time" in data and time.dtype.kind != since.dtype.kind:
        raise ValueError(
            f"known must be of the kind of the edges' times, {time.dtype}, got {since.dtype}: convert it, by "
            "ticks of the same unit and origin"
        )
    late = since[src] if "time" not in data else np.maximum(time, since[src])
    return sort_by_time(from_edges(src, dst, graph.num_nodes, **data | {"time": late}))


def _duration(value: Any, unit: str) -> np.timedelta64:
    """A duration; a whole number counts the times' own unit."""
    if isinstance(value, np.timedelta64 | timedelta):
        return np.timedelta64(value)
    if not isinstance(value, int | np.integer):
        raise ValueError(f"a unit or origin must be a duration or a whole number, got {value!r}")
    return np.timedelta64(int(value), unit)


def _whole(array: np.ndarray) -> np.ndarray:
    """Numbers as int64, or a ValueError."""
    if array.dtype.kind not in "iuf":
        raise ValueError(
            f"times must be datetime64, timedelta64 or whole numbers, got {array.dtype}: make dates by "
            'np.asarray(dates, "datetime64[s]")'
        )
    bad = ~np.isfinite(array) | (array != np.floor(array)) | (np.abs(array.astype(np.float64)) >= 2.0**62)
    if bad.any():
        raise ValueError(f"times must be whole numbers below 2^62, got {array[bad][0]}: round them yourself")
    return array.astype(np.int64)


def _counts(*arrays: np.ndarray) -> list[np.ndarray]:
    """Dates and durations as whole numbers of the finest unit that any is in."""
    if any(a.dtype.kind == "m" and np.datetime_data(a.dtype)[0] in "YM" for a in arrays):
        raise ValueError("units and durations must be of one length, got months or years: count days, 'D'")
    arrays = tuple(a.astype("M8[D]") if np.datetime_data(a.dtype)[0] in "YM" else a for a in arrays)
    units = [np.datetime_data(array.dtype) for array in arrays]
    named = [name for name, _ in units if name != "generic"]
    finest = max(map(_UNITS.index, named), default=0)
    found = []
    for array, (name, count) in zip(arrays, units, strict=True):
        if np.isnat(array).any():
            raise ValueError("times must have no NaT: leave those events out, or give them the time ALWAYS")
        own = finest if name == "generic" else _UNITS.index(name)
        factor = count * int(np.prod([_STEPS[unit] for unit in _UNITS[own:finest]], dtype=object))
        counts = array.astype(np.int64)
        if array.size and max(abs(int(counts.min())), abs(int(counts.max()))) * factor >= 2**62:
            raise ValueError(
                f"times are too far apart to be compared in {_UNITS[finest]}, got {array.min()} .. "
                f"{array.max()}: round them to a coarser unit, astype('datetime64[s]')"
            )
        found.append(counts * factor)
    return found


def _check_fit(counts: np.ndarray, first: int, size: int, array: np.ndarray, given: tuple) -> None:
    since = f"of {given[0]} since {given[1]}"
    part = (counts - first) % size != 0
    if part.any():
        raise ValueError(
            f"times must be whole numbers of units, got {array[part][0]} {since}: take a finer unit, or "
            "round them yourself"
        )
    if array.size and not ALWAYS < (ends := (counts - first) // size).min() <= ends.max() < INT32:
        raise ValueError(
            f"times must fit int32, got {ends.min()} .. {ends.max()} {since}: take a coarser unit or another "
            "origin"
        )
