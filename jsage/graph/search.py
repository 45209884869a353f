"""Rows in ascending order, so that an edge is found by binary search: on the device, inside jit.

`Graph` holds in-neighbors: the edges `u -> v` are looked for among the sources in row `v`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped

from jsage._internal.arrays import aligned, take
from jsage.graph.graph import Graph, SortedGraph, TimeSortedGraph


def sort_rows(graph: Graph) -> SortedGraph:
    """The graph with the sources of each row ascending, `edge_data` moved along.

    On the host, once, and without a copy where they ascend already. Parallel edges keep their order.

    >>> from jsage.graph import from_edges
    >>> graph = sort_rows(from_edges([2, 0, 1], [0, 0, 1], num_nodes=3, weight=[0.5, 1.0, 2.0]))
    >>> graph.indices.tolist(), graph.edge_data["weight"].tolist()
    ([0, 2, 1], [1.0, 0.5, 2.0])
    """
    if isinstance(graph, SortedGraph):
        return graph
    if has_sorted_rows(graph):
        return SortedGraph(*graph)
    return SortedGraph(*_reordered(graph, np.argsort(_pairs(graph), kind="stable")))


def sort_by_time(graph: Graph) -> TimeSortedGraph:
    """The graph with the `edge_data["time"]` of each row ascending; edges of one time keep their order.

    On the host, once, and without a copy where they ascend already. Raises ValueError for a graph without
    times.

    >>> from jsage.graph import from_edges
    >>> graph = sort_by_time(from_edges([1, 2, 0], [0, 0, 1], num_nodes=3, time=[30, 10, 20]))
    >>> graph.indices.tolist(), graph.edge_data["time"].tolist()
    ([2, 1, 0], [10, 30, 20])
    """
    if isinstance(graph, TimeSortedGraph):
        return graph
    if "time" not in graph.edge_data:
        raise ValueError(
            f"the graph's edges have no 'time', only {sorted(graph.edge_data)}: from_edges(..., time=...)"
        )
    row = _pairs(graph) >> 32
    order = np.lexsort((np.asarray(graph.edge_data["time"]), row))
    if (order[1:] > order[:-1]).all():
        return TimeSortedGraph(*graph)
    return TimeSortedGraph(*_reordered(graph, order))


def _reordered(graph: Graph, order: np.ndarray) -> Graph:
    """The edges in another order, each within its row."""
    data = {name: jax.device_put(np.asarray(values)[order]) for name, values in graph.edge_data.items()}
    return Graph(graph.indptr, jax.device_put(np.asarray(graph.indices)[order]), data)


def has_sorted_rows(graph: Graph) -> bool:
    """Whether the sources of every row ascend (on the host), as `edge_range` and `has_edge` need.

    >>> from jsage.graph import from_edges
    >>> has_sorted_rows(from_edges([2, 0], [0, 0], num_nodes=3))
    False
    """
    pairs = _pairs(graph)
    return bool((pairs[1:] >= pairs[:-1]).all())


def edge_range(
    graph: Graph, src: Int[Array, "*shape"], dst: Int[Array, "*shape"]
) -> tuple[Int[Array, "*shape"], Int[Array, "*shape"]]:
    """`(start, stop)`: `graph.indices[start:stop]` are all the edges `src -> dst`, none where both are equal.

    Two binary searches of row `dst`, of as many steps as the longest row of the call has binary digits. The
    graph is one of `sort_rows`, else TypeError; `dst` are ids in `0 .. num_nodes - 1`, `src` any integers.

    >>> from jsage.graph import from_edges
    >>> graph = sort_rows(from_edges([1, 2, 2, 0], [0, 0, 0, 1], num_nodes=3))
    >>> start, stop = edge_range(graph, jnp.array([2, 0, 0]), jnp.array([0, 1, 2]))
    >>> start, stop - start
    (Array([1, 3, 4], dtype=int32), Array([2, 1, 0], dtype=int32))
    """
    return _search(graph, src, dst), _search(graph, src, dst, after=True)


def has_edge(graph: Graph, src: Int[Array, "*shape"], dst: Int[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Whether the graph has an edge `src -> dst`: one binary search of row `dst`, which must be sorted.

    >>> from jsage.graph import from_edges
    >>> graph = sort_rows(from_edges([1, 2, 0], [0, 0, 1], num_nodes=3))
    >>> has_edge(graph, jnp.array([2, 0]), jnp.array([0, 2]))
    Array([ True, False], dtype=bool)
    """
    if graph.num_edges == 0:
        return jnp.zeros(src.shape, bool)
    found = _search(graph, src, dst)
    inside = found < take(graph.indptr, dst + 1)
    return inside & (take(graph.indices, jnp.where(inside, found, 0)) == src)


def bisect(
    values: Shaped[Array, " n"],
    low: Int[Array, "*#shape"],
    high: Int[Array, "*#shape"],
    target: Shaped[Array, "*shape"],
    *,
    after: bool = False,
) -> Int[Array, "*shape"]:
    """The first position of each `low .. high - 1` whose value is not below the target; `high` if none is.

    `after=True`: whose value is above it. Values ascend within each range. As many steps as the longest range
    of the call has binary digits.

    >>> bisect(jnp.array([1, 3, 3, 0]), jnp.array([0, 0]), jnp.array([3, 3]), jnp.array([3, 4]))
    Array([1, 3], dtype=int32)
    """
    if values.shape[0] == 0:
        return jnp.broadcast_to(low, target.shape)
    return bisect_by(lambda at: take(values, at), low, high, target, after=after)


def bisect_by(
    value_at: Callable[[Array], Array],
    low: Int[Array, "*#shape"],
    high: Int[Array, "*#shape"],
    target: Shaped[Array, "*shape"],
    *,
    after: bool = False,
) -> Int[Array, "*shape"]:
    """`bisect` of values that `value_at(positions)` computes; it is asked for those of each range, and for 0.

    >>> bisect_by(lambda at: at * at, jnp.array([0]), jnp.array([9]), jnp.array([10]))
    Array([4], dtype=int32)
    """
    low, high, target = aligned(low, high, target)
    low, high = jnp.broadcast_to(low, target.shape), jnp.broadcast_to(high, target.shape)

    def halve(bounds):
        low, high = bounds
        middle = low + (high - low) // 2  # no sum beyond 2^31
        open_ = low < high
        value = value_at(jnp.where(open_, middle, 0))
        below = value <= target if after else value < target
        return jnp.where(open_ & below, middle + 1, low), jnp.where(open_ & ~below, middle, high)

    return jax.lax.while_loop(lambda bounds: (bounds[0] < bounds[1]).any(), halve, (low, high))[0]


def _search(graph: Graph, src: Array, dst: Array, *, after: bool = False) -> Array:
    """The first position of row `dst` whose source is not below `src`, or is above it."""
    if not isinstance(graph, SortedGraph):
        raise TypeError(
            f"edges are looked up in sorted rows, and a {type(graph).__name__} need not have them: pass "
            "jsage.graph.sort_rows(graph), made once on the host"
        )
    return bisect(graph.indices, take(graph.indptr, dst), take(graph.indptr, dst + 1), src, after=after)


def _pairs(graph: Graph) -> np.ndarray:
    """`(destination, source)` of each edge, as one int64."""
    dst = np.repeat(np.arange(graph.num_nodes, dtype=np.int64), np.diff(np.asarray(graph.indptr)))
    return dst << 32 | np.asarray(graph.indices)
