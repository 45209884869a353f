"""What a split of edges holds, and the check that nothing leaks from one part into another."""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Real

from jsage._internal.checks import check_range
from jsage.graph import Graph, edges

Columns = tuple[np.ndarray, ...]


class EdgeSplit(NamedTuple):
    """The undirected edges of a graph in three parts, one `(u, v)` a pair, its ends in random order."""

    graph: Graph
    """What messages pass along: the training edges in both directions, every self-loop, and rows sorted."""
    train: Int[np.ndarray, "n_train 2"]
    val: Int[np.ndarray, "n_val 2"]
    test: Int[np.ndarray, "n_test 2"]
    val_negatives: Int[np.ndarray, "n_val 2"]
    """As many pairs as `val` that are no edges of the whole graph."""
    test_negatives: Int[np.ndarray, "n_test 2"]


class TimeSplit(NamedTuple):
    """Events `(src, dst)` in three parts, one after another in time; within a part in order of time."""

    graph: Graph
    """What messages pass along: the training events, their `"time"` beside them, and rows sorted."""
    train: Int[np.ndarray, "n_train 2"]
    val: Int[np.ndarray, "n_val 2"]
    test: Int[np.ndarray, "n_test 2"]
    train_time: Real[np.ndarray, " n_train"]
    val_time: Real[np.ndarray, " n_val"]
    test_time: Real[np.ndarray, " n_test"]


def verify_split(split: EdgeSplit | TimeSplit, graph: Graph) -> None:
    """Raise ValueError for the first leak of a split of `graph`, the whole one, that says what and where.

    * Both kinds: ids out of range; edges of the graph that no part has, edges of a part that the graph has
      not; a training graph that holds other edges than the training ones, or unsorted rows.
    * `EdgeSplit`, whichever way round a pair is: a node joined to itself; a pair twice in one part or in two;
      a `val` or `test` pair in the training graph; negatives that are edges, or in both parts.
    * `TimeSplit`: a part that does not end before the next begins.

    >>> from jsage.data import digits, split_edges
    >>> split = split_edges(digits().graph, seed=0)
    >>> verify_split(split._replace(val=split.test, val_negatives=split.test_negatives), digits().graph)
    Traceback (most recent call last):
    ValueError: the same pair is in val and in test: ...
    """
    if split.graph.num_nodes != graph.num_nodes:
        raise ValueError(
            f"the training graph must have all {graph.num_nodes} nodes, got {split.graph.num_nodes}"
        )
    for name, pairs in split._asdict().items():
        if name in ("train", "val", "test", "val_negatives", "test_negatives"):
            check_range(pairs, graph.num_nodes, name)
    src, dst = _ends(split.graph)
    if len(unsorted := np.flatnonzero((np.diff(src) < 0) & (np.diff(dst) == 0))):
        raise ValueError(f"row {dst[unsorted[0]]} of the training graph is not sorted: use sort_rows")
    if isinstance(split, TimeSplit):
        _verify_times(split, graph)
    else:
        _verify_pairs(split, graph)


def pair_numbers(u: Int[np.ndarray, " n"], v: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """One number a pair, whichever way round: `h (h + 1) / 2 + l` for the higher end and the lower one.

    >>> pair_numbers(np.array([0, 1, 2]), np.array([0, 0, 1])).tolist()
    [0, 1, 4]
    """
    high, low = np.maximum(u, v).astype(np.int64), np.minimum(u, v).astype(np.int64)
    return high * (high + 1) // 2 + low


def ordered_numbers(pairs: Int[np.ndarray, "*rows 2"]) -> Int[np.ndarray, "*rows"]:
    """One number an ordered pair: the first end in the high half of 64 bits.

    >>> ordered_numbers(np.array([[0, 7], [1, 0]])).tolist()
    [7, 4294967296]
    """
    return pairs[..., 0].astype(np.int64) << 32 | pairs[..., 1]


def pair_ends(numbers: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The lower and the higher end of numbered pairs.

    >>> [ends.tolist() for ends in pair_ends(np.array([0, 1, 4]))]
    [[0, 0, 1], [0, 1, 2]]
    """
    high = ((np.sqrt(8.0 * numbers + 1) - 1) / 2).astype(np.int64)
    high -= high * (high + 1) // 2 > numbers  # a float's root may be one off
    high += (high + 1) * (high + 2) // 2 <= numbers
    return numbers - high * (high + 1) // 2, high


def distinct(values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """The distinct values in order: `np.unique`, which is many times slower where it hashes.

    >>> distinct(np.array([3, 1, 3])).tolist()
    [1, 3]
    """
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]


def is_among(values: Int[np.ndarray, " n"], table: Int[np.ndarray, " m"]) -> Bool[np.ndarray, " n"]:
    """Which values are in a table that ascends.

    >>> is_among(np.array([3, 1, 9]), np.array([1, 2, 3])).tolist()
    [True, True, False]
    """
    at = np.searchsorted(table, values)
    return np.append(table, -1)[at] == values


def _verify_pairs(split: EdgeSplit, graph: Graph) -> None:
    names = ("train", "val", "test", "val_negatives", "test_negatives")
    numbers = {name: _check_pairs(name, getattr(split, name)) for name in names}
    for one, other in (*combinations(names[:3], 2), names[3:]):
        _check_apart(f"the same pair is in {one} and in {other}", numbers[one], numbers[other])
    src, dst = _ends(graph)
    kept_src, kept_dst = _ends(split.graph)
    for name in names[1:3]:
        kept = pair_numbers(kept_src, kept_dst)
        _check_apart(f"a {name} pair is in the training graph", numbers[name], kept)
    known = pair_numbers(src, dst)
    for name in names[3:]:
        _check_apart(f"one of {name} is an edge of the graph", numbers[name], known)
    together = np.concatenate([numbers[name] for name in names[:3]])
    _check_same("train, val and test", pair_ends(together), pair_ends(distinct(known[src != dst])))
    stays = is_among(known, np.sort(numbers["train"])) | (src == dst)
    _check_same("the training graph", (kept_src, kept_dst), (src[stays], dst[stays]))


def _verify_times(split: TimeSplit, graph: Graph) -> None:
    if "time" not in graph.edge_data or "time" not in split.graph.edge_data:
        raise ValueError("both graphs must have the times of their events as edge_data['time']")
    parts = {
        name: (getattr(split, name), getattr(split, f"{name}_time")) for name in ("train", "val", "test")
    }
    for name, (pairs, time) in parts.items():
        if len(time) != len(pairs):
            raise ValueError(f"{name}_time must have one entry an event, {len(pairs)}, got {len(time)}")
    for one, other in combinations(parts, 2):
        before, after = parts[one][1], parts[other][1]
        if len(before) and len(after) and before.max() >= after.min():
            raise ValueError(
                f"{one} must end before {other} begins, but its event {before.argmax()} is of time "
                f"{before.max()} and event {after.argmin()} of {other} of {after.min()}"
            )
    together = [np.concatenate(columns) for columns in zip(*parts.values(), strict=True)]
    _check_same("train, val and test", (*together[0].T, together[1]), _events(graph))
    _check_same("the training graph", _events(split.graph), (*split.train.T, split.train_time))


def _check_pairs(name: str, pairs: np.ndarray) -> np.ndarray:
    """The numbers of the pairs; raises ValueError where they repeat or join a node to itself."""
    if len(same := np.flatnonzero(pairs[:, 0] == pairs[:, 1])):
        raise ValueError(f"{name} must join two nodes, got {_plain(pairs[same[0]])} in row {same[0]}")
    numbers = pair_numbers(*pairs.T)
    _, first, count = np.unique(numbers, return_index=True, return_counts=True)
    if (count > 1).any():
        row = first[count > 1].min()
        raise ValueError(f"{name} must hold each pair once: {_plain(pairs[row])}, row {row}, comes again")
    return numbers


def _check_apart(what: str, one: np.ndarray, other: np.ndarray) -> None:
    if len(both := np.flatnonzero(is_among(one, np.sort(other)))):
        pair = _plain(np.stack(pair_ends(one[both[:1]]), 1)[0])
        raise ValueError(f"{what}: {pair}, row {both[0]}, the first of {len(both)}")


def _check_same(what: str, found: Columns, wanted: Columns) -> None:
    """Whether two lists of edges, given by their columns, hold the same ones equally often."""
    if all(map(np.array_equal, _in_order(*found), _in_order(*wanted))):
        return
    for flaw, one, other in (("missing", wanted, found), ("too many", found, wanted)):
        count, first = _beyond(one, other)
        if count:
            edge = tuple(column[first].item() for column in one)
            raise ValueError(f"{what}: {count} edges {flaw}, the first {edge}")


def _in_order(src: np.ndarray, dst: np.ndarray, *time: np.ndarray) -> list[np.ndarray]:
    pair = src.astype(np.int64) << 32 | dst
    if not time:
        return [np.sort(pair)]
    order = np.lexsort((pair, *time))
    return [column[order] for column in (pair, *time)]


def _beyond(one: Columns, other: Columns) -> tuple[int, int]:
    """How many rows `one` holds beyond what `other` does, and the position in `one` of the first of them."""
    rank = np.zeros(len(one[0]) + len(other[0]), np.int64)
    for columns in zip(one, other, strict=True):
        column = np.unique(np.concatenate(columns), return_inverse=True)[1]
        rank = np.unique(rank * len(rank) + column, return_inverse=True)[1]
    mine, theirs = np.split(rank, [len(one[0])])
    beyond = np.bincount(mine, minlength=len(rank)) - np.bincount(theirs, minlength=len(rank))
    return int(beyond[beyond > 0].sum()), int(np.argmax(np.append(beyond[mine], 0) > 0))


def _ends(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    src, dst = edges(graph)
    return np.asarray(src), np.asarray(dst)


def _events(graph: Graph) -> Columns:
    return (*_ends(graph), np.asarray(graph.edge_data["time"]))


def _plain(pair: np.ndarray) -> tuple[int, ...]:
    return tuple(pair.tolist())
