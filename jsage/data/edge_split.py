"""Splits of a graph's edges for link prediction: what to train on and what to hide, with no leak between.

`split_edges` at random for an undirected graph, `split_edges_by_time` for events in the order they happened.
Both end in `verify_split`, which names every leak it knows; run it on splits from elsewhere too.
`unseen_nodes` is the inductive part of a split by time: events with nodes that no training event has.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from jsage._internal.checks import check_edge_rows
from jsage.data.link_negatives import non_edges
from jsage.data.split_check import (
    EdgeSplit,
    TimeSplit,
    distinct,
    is_among,
    pair_ends,
    pair_numbers,
    verify_split,
)
from jsage.graph import Graph, SortedGraph, edges, from_edges, node_sides
from jsage.typing import HostArray


def split_edges(
    graph: Graph, *, seed: int, val: float = 0.05, test: float = 0.1, sides: HostArray | None = None
) -> EdgeSplit:
    """Split an undirected graph's edges at random: `round(val·m)` and `round(test·m)` of its `m` pairs.

    A pair `{u, v}` goes to one part as a whole, in both directions and with its parallel edges; `edge_data`
    stays with the edges. Self-loops are in no part, and all in the graph to train on: they say nothing of a
    link. The same seed gives the same split under one version of NumPy.

    Negatives are distinct pairs, also from part to part, uniform over those that the whole graph does not
    join and could: negative `i` has the two `sides` of pair `i`, by default those of
    `jsage.graph.node_sides(graph)`, so that in a graph of users and items it is a user and an item.

    Raises ValueError for a graph with an edge in one direction only, shares that leave nothing to train on,
    and a graph with too few pairs that are no edges.

    >>> from jsage.data import digits
    >>> split = split_edges(digits().graph, seed=0)
    >>> len(split.train), split.graph.num_edges, len(split.val), split.test_negatives.shape
    (8440, 16880, 496, (993, 2))
    """
    _check_shares(val, test)
    rng, n = np.random.default_rng(seed), graph.num_nodes
    src, dst = (np.asarray(ends) for ends in edges(graph))
    _check_symmetric(src, dst)
    pair = pair_numbers(src, dst)
    known = distinct(pair[src != dst])
    sizes = round(val * len(known)), round(test * len(known))
    if sum(sizes) >= len(known):
        raise ValueError(
            f"val={val} and test={test} take {sum(sizes)} of {len(known)} edges: nothing is left to train on"
        )
    parts = np.split(rng.permutation(known), np.cumsum(sizes))
    sides = node_sides(graph, sides)
    negatives = np.split(non_edges(rng, known, sides, np.concatenate(parts[:2])), [sizes[0]])
    hidden = is_among(pair, np.sort(np.concatenate(parts[:2])))
    data = {name: np.asarray(values)[~hidden] for name, values in graph.edge_data.items()}
    kept = _sorted_graph(src[~hidden], dst[~hidden], n, data)
    val_pairs, test_pairs, train_pairs = (_turned(rng, part) for part in parts)
    split = EdgeSplit(kept, train_pairs, val_pairs, test_pairs, *(_turned(rng, part) for part in negatives))
    verify_split(split, graph)
    return split


def split_edges_by_time(
    src: HostArray, dst: HostArray, time: HostArray, num_nodes: int, *, val: float = 0.15, test: float = 0.15
) -> TimeSplit:
    """Split events `src -> dst` in the order of their times: the last `test` of them, `val` before, the rest.

    Events of one time stay together: those at a border go to the later part. Parallel events, also of one
    pair in several parts, are events of their own. `time` is kept as int32, or as float32 where
    that tells all apart.

    Raises ValueError for times that are neither, and where a part that was asked for comes out empty.

    >>> src, dst, time = np.array([0, 1, 2, 0, 1]), np.array([1, 2, 3, 1, 3]), np.array([5, 1, 3, 7, 5])
    >>> split = split_edges_by_time(src, dst, time, num_nodes=4, val=0.4, test=0.2)
    >>> split.train.tolist(), split.val_time, split.test.tolist(), split.graph.num_edges
    ([[1, 2], [2, 3]], array([5, 5], dtype=int32), [[0, 1]], 2)
    """
    _check_shares(val, test)
    time = check_edge_rows("time", time, len(src))
    graph = from_edges(src, dst, num_nodes, time=time)  # checks the ends
    order = np.argsort(time, kind="stable")
    events, time = np.stack([np.asarray(src), np.asarray(dst)], 1)[order].astype(np.int32), time[order]
    n = len(time)
    cuts = n - round((val + test) * n), n - round(test * n)
    cuts = [int(np.searchsorted(time, time[cut])) if cut < n else n for cut in cuts]
    parts, times = np.split(events, cuts), np.split(time, cuts)
    for name, part, wanted in zip(("train", "val", "test"), parts, (1, val, test), strict=True):
        if wanted and not len(part):
            raise ValueError(
                f"{name} has no event, for shares val={val}, test={test} of {n} events with "
                f"{len(np.unique(time))} distinct times: use other shares or finer times"
            )
    kept = _sorted_graph(parts[0][:, 0], parts[0][:, 1], num_nodes, {"time": times[0]})
    split = TimeSplit(kept, parts[0], parts[1], parts[2], times[0], times[1], times[2])
    verify_split(split, graph)
    return split


class Unseen(NamedTuple):
    """What training does not see: nodes, and the later events that touch one (inductive evaluation)."""

    nodes: Bool[np.ndarray, " num_nodes"]
    """Nodes that no training event has, those without any event too."""
    val: Bool[np.ndarray, " n_val"]
    """Which events of `val` have such a node at one end at least."""
    test: Bool[np.ndarray, " n_test"]
    """Which events of `test` have."""


def unseen_nodes(split: TimeSplit) -> Unseen:
    """The inductive part of a split: nodes that no training event has, and which later events touch one.

    `Unseen(...).test` picks rows of scores: how well a model does on nodes that it was not trained on, beside
    all events (the "new node" sets of DyGLib: Yu et al., 2023). An event between two such nodes has
    `unseen.nodes[split.test].all(1)`.

    >>> src, dst, time = np.array([0, 1, 0, 2, 0]), np.array([1, 0, 1, 3, 1]), np.arange(5)
    >>> split = split_edges_by_time(src, dst, time, num_nodes=4, val=0.0, test=0.4)
    >>> unseen = unseen_nodes(split)
    >>> unseen.nodes.tolist(), unseen.test.tolist()
    ([False, False, True, True], [True, False])
    """
    nodes = np.ones(split.graph.num_nodes, bool)
    nodes[split.train] = False
    return Unseen(nodes, *(nodes[part[:, 0]] | nodes[part[:, 1]] for part in (split.val, split.test)))


def hold_out_nodes(split: TimeSplit, *, seed: int, share: float = 0.1) -> TimeSplit:
    """The split without the training events of some nodes, so that more of the later events are inductive.

    `int(share·m)` nodes are drawn evenly among those of `val` and `test`, `m` being the nodes that any event
    has; `val` and `test` stay as they are. `unseen_nodes` of the result finds the drawn nodes and those
    that come late by themselves: DyGLib's protocol (and TGAT's: Xu et al., 2020). It costs training events,
    also of others; without it the inductive part is what the data have. The same seed gives the same
    split under one version of NumPy.

    The events left out are in no part: they may still be read as neighbors in evaluation, from a graph of all
    events; `verify_split` takes the graph without them. Raises ValueError for a share that later events have
    too few nodes for, or that leaves nothing to train on.

    >>> src, dst, time = np.array([0, 1, 0, 2, 0]), np.array([1, 0, 3, 3, 1]), np.arange(5)
    >>> split = split_edges_by_time(src, dst, time, num_nodes=4, val=0.0, test=0.4)
    >>> held = hold_out_nodes(split, seed=0, share=0.25)
    >>> len(split.train), len(held.train), unseen_nodes(held).nodes.sum()
    (3, 2, np.int64(2))
    """
    later = np.concatenate([split.val, split.test])
    known = np.unique(np.concatenate([split.train, later]))
    late, count = np.unique(later), int(share * len(known))
    if not 0 <= count <= len(late):
        raise ValueError(
            f"share={share} of {len(known)} nodes are {count}, but val and test have {len(late)}: use a "
            "share from 0 that they have"
        )
    hidden = np.zeros(split.graph.num_nodes, bool)
    hidden[np.random.default_rng(seed).choice(late, count, replace=False)] = True
    stays = ~hidden[split.train].any(1)
    if not stays.any():
        raise ValueError(
            f"share={share} leaves no event to train on, of {len(split.train)}: use a smaller one"
        )
    train, time = split.train[stays], split.train_time[stays]
    kept = _sorted_graph(train[:, 0], train[:, 1], split.graph.num_nodes, {"time": time})
    return split._replace(graph=kept, train=train, train_time=time)


def _check_shares(val: float, test: float) -> None:
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise ValueError(f"val and test must be shares from 0 that leave some to train, got {val} and {test}")


def _check_symmetric(src: np.ndarray, dst: np.ndarray) -> None:
    there, back = distinct(_directed(src, dst)), np.sort(_directed(dst, src))
    if len(single := there[~is_among(there, back)]):
        edge = int(single[0] >> 32), int(single[0] & 2**32 - 1)
        raise ValueError(
            f"an undirected graph has each edge in both directions, but {len(single)} have no reverse, the "
            f"first {edge}: pass symmetrize(graph), or split events by time"
        )


def _turned(rng: np.random.Generator, numbers: np.ndarray) -> np.ndarray:
    """The pairs `[n, 2]` of these numbers, the ends of each in random order."""
    pairs = np.stack(pair_ends(numbers), 1).astype(np.int32)
    return rng.permuted(pairs, axis=1)


def _directed(src: np.ndarray, dst: np.ndarray) -> np.ndarray:
    return src.astype(np.int64) << 32 | dst


def _sorted_graph(
    src: np.ndarray, dst: np.ndarray, num_nodes: int, data: dict[str, np.ndarray]
) -> SortedGraph:
    order = np.argsort(src, kind="stable")  # from_edges groups by destination, stably
    data = {name: rows[order] for name, rows in data.items()}
    return SortedGraph(*from_edges(src[order], dst[order], num_nodes, **data))
