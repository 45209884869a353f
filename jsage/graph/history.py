"""What had happened as of a time: how often, and how long ago, at a node or between two.

Counts and ages of events strictly earlier than a time of each row's own, in the step, by binary search: exact
integers, as many steps as the longest row has binary digits. Degrees into nodes read `sort_by_time(graph)`,
those out of nodes `sort_by_time(reverse(graph))`, pairs `sort_pairs_by_time(graph)`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, Num

from jsage._internal.arrays import take
from jsage.graph.as_of import GraphBefore
from jsage.graph.graph import Graph, SortedGraph
from jsage.graph.growing import TimeSortedGrown
from jsage.graph.search import bisect, edge_range, sort_by_time, sort_rows


class PairSortedGraph(SortedGraph):
    """A graph whose rows are known to ascend by source, and by `edge_data["time"]` for one source.

    `sort_pairs_by_time` makes one. Other edges or times make it a plain graph again.

    >>> from jsage.graph import from_edges
    >>> graph = sort_pairs_by_time(from_edges([2, 1, 1], [0, 0, 0], num_nodes=3, time=[5, 9, 3]))
    >>> type(graph).__name__, graph.indices.tolist(), graph.edge_data["time"].tolist()
    ('PairSortedGraph', [1, 1, 2], [3, 9, 5])
    """

    __slots__ = ()

    def _replace(self, **fields: Any) -> Graph:  # type: ignore[override]
        new = super()._replace(**fields)
        kept = fields.keys() <= {"edge_data"} and new.edge_data.get("time") is self.edge_data["time"]
        return new if kept else Graph(*new)


class Past(NamedTuple):
    """Events of a node, or from one node to another, earlier than a time of its own."""

    counts: Int[Array, "*rows"]
    """How many there were."""
    ages: Num[Array, "*rows ranks"]
    """How long before the time the latest was, the one before it, ...: -1 where there was none."""


def sort_pairs_by_time(graph: Graph) -> PairSortedGraph:
    """The graph with each row in the order of sources, and edges of one source in the order of time.

    On the host, once; edges alike keep their order. Raises ValueError for a graph without times.

    >>> from jsage.graph import from_edges
    >>> graph = sort_pairs_by_time(from_edges([2, 1, 1], [0, 0, 0], num_nodes=3, time=[5, 9, 3]))
    >>> graph.indices.tolist(), graph.edge_data["time"].tolist()
    ([1, 1, 2], [3, 9, 5])
    """
    if isinstance(graph, PairSortedGraph):
        return graph
    return PairSortedGraph(*sort_rows(sort_by_time(graph)))  # which is stable


def node_past(
    graph: Graph | TimeSortedGrown,
    nodes: Int[Array, "*rows"],
    time: Num[Array, "*#rows"],
    ranks: Sequence[int] = (1,),
) -> Past:
    """Events into each of `nodes` before its time: their number, and the ages of the `ranks`-th latest.

    Of `sort_by_time(reverse(graph))` they are those out of the nodes. The tables of a `GrowingGraph` that
    began in order of time do as well. Ages are in the dtype of the times: of int32 ticks they are exact
    within a span of 2^31. Raises TypeError for rows that need not be in order of time, and ValueError for
    ranks below 1.

    >>> from jsage.graph import from_edges, sort_by_time
    >>> graph = sort_by_time(from_edges([1, 2, 1], [0, 0, 0], num_nodes=3, time=[10, 20, 30]))
    >>> node_past(graph, jnp.array([0, 0, 1]), jnp.array([30, 31, 99]), ranks=(1, 3))
    Past(counts=Array([2, 3, 0], dtype=int32), ages=Array([[10, -1],
           [ 1, 21],
           [-1, -1]], dtype=int32))
    """
    time = jnp.broadcast_to(time, nodes.shape)
    start, stop = GraphBefore(graph, time).bounds(nodes)
    return _past(graph, start, stop - start, time, ranks)


def pair_past(
    graph: Graph,
    pairs: tuple[Int[Array, "*rows"], Int[Array, "*rows"]],
    time: Num[Array, "*#rows"],
    ranks: Sequence[int] = (1,),
) -> Past:
    """Events `src -> dst` of each of the pairs `(src, dst)` before its time, as `node_past` of nodes.

    Raises TypeError for a graph that is not one of `sort_pairs_by_time`.

    >>> from jsage.graph import from_edges
    >>> graph = sort_pairs_by_time(from_edges([1, 2, 1], [0, 0, 0], num_nodes=3, time=[10, 20, 30]))
    >>> pair_past(graph, (jnp.array([1, 0]), jnp.array([0, 1])), jnp.array([31, 31]), ranks=(1, 2))
    Past(counts=Array([2, 0], dtype=int32), ages=Array([[ 1, 21],
           [-1, -1]], dtype=int32))
    """
    if not isinstance(graph, PairSortedGraph):
        raise TypeError(
            "pairs are counted as of a time in rows sorted by source and time, and a "
            f"{type(graph).__name__} need not have them: pass jsage.graph.sort_pairs_by_time(graph), made "
            "once on the host"
        )
    src, dst = pairs
    time = jnp.broadcast_to(time, src.shape)
    start, stop = edge_range(graph, src, dst)
    return _past(graph, start, bisect(graph.edge_data["time"], start, stop, time) - start, time, ranks)


def _past(
    graph: Graph | TimeSortedGrown, start: Array, count: Array, time: Array, ranks: Sequence[int]
) -> Past:
    """The past of a range of the edges, its first `count` from `start` on."""
    if min(ranks, default=1) < 1:
        raise ValueError(f"ranks count from the latest event, 1, backwards, got {tuple(ranks)}")
    times = graph.edge_data["time"]
    none = jnp.full(time.shape, -1, time.dtype)

    def age(rank: int) -> Array:
        there = count >= rank
        return jnp.where(there, time - take(times, jnp.where(there, start + count - rank, 0)), none)

    ages = [age(rank) if times.shape[0] else none for rank in ranks]
    return Past(count, jnp.stack(ages, -1) if ages else jnp.zeros((*time.shape, 0), time.dtype))
