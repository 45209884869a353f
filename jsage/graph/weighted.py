"""Graphs whose edges are drawn by weight: tables made on the host, once, and read inside jit.

`cumulate` is for draws without replacement, also of the edges before a time; `alias_tables` for draws with
replacement. The weight drawn by is no longer among the edges' data, so that no message is multiplied by it
a second time.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from jsage._internal.arrays import below, take
from jsage._internal.checks import check_edge_rows
from jsage.graph.graph import Graph, without_data
from jsage.graph.search import bisect
from jsage.typing import EdgeData

ONE = 2**30
"""What the weights of a row add up to, about."""
UNWEIGHTED = (
    "edges are drawn by weight from tables that a {} does not have: pass jsage.graph.cumulate(graph), made "
    "once on the host"
)
_PART = 2**22
"""Edges that are worked on together on the host."""


class RowWeights(NamedTuple):
    """The weights of some rows, each laid out along a line of whole numbers, one edge after the other."""

    start: Int[Array, " rows"]
    """Where each row begins among the edges."""
    size: Int[Array, " rows"]
    """How many edges it has."""
    first: Int[Array, " rows"]
    """How many come before those that may be drawn."""
    stop: Int[Array, " rows"]
    """The number of the first one behind those that may be drawn."""
    cumulative: Int[Array, " num_edges"]
    guide: Int[Array, " num_edges"]

    def total(self) -> Int[Array, " rows"]:
        """The length of each row's line, as far as it may be drawn from."""
        return self._before(self.stop) - self._before(self.first)

    def locate(
        self, point: Int[Array, " rows"], valid: Bool[Array, " rows"]
    ) -> tuple[Int[Array, " rows"], Int[Array, " rows"], Int[Array, " rows"]]:
        """`(offset, low, weight)`: the edge that holds a point of each line, where it begins, how long it is.

        By a guide table (Chen and Asau, 1974) and a binary search between two of its entries: in a row whose
        weights are much alike a step or two, in any row as many as it has binary digits. Lines and numbers
        begin with the first edge that may be drawn. All 0 where not valid; elsewhere `0 <= point < total()`.
        """
        start, size = jnp.where(valid, self.start, 0), jnp.where(valid, self.size, 1)
        skipped = jnp.where(valid, self._before(self.first), 0)
        point = jnp.where(valid, point, 0) + skipped
        part = below(jnp.minimum(point, ONE - 1).astype(jnp.uint32) << 2, size)
        low = jnp.where(valid, take(self.guide, start + part), 0)
        after = take(self.guide, start + jnp.minimum(part + 1, size - 1))
        high = jnp.where(part + 1 < size, after, size - 1)
        offset = bisect(self.cumulative, start + low, start + high, point, after=True) - start
        offset = jnp.where(valid, offset, 0)
        begin = jnp.where(valid, self._before(offset), 0)
        weight = jnp.where(valid, take(self.cumulative, start + offset) - begin, 0)
        return jnp.where(valid, offset - self.first, 0), begin - skipped, weight

    def _before(self, offset: Array) -> Array:
        some = offset > 0
        return jnp.where(some, take(self.cumulative, jnp.where(some, self.start + offset - 1, 0)), 0)


class WeightedGraph(NamedTuple):
    """A graph with running sums of its weights, an `Adjacency`; make one with `cumulate`."""

    graph: Graph
    """Without the weight in its `edge_data`."""
    cumulative: Int[Array, " num_edges"]
    """The weights of a row up to and with this edge, in units of about its whole weight / 2^30."""
    guide: Int[Array, " num_edges"]
    """Entry `j` of a row of `n`: the edge that holds the point `ceil(j * 2^30 / n)`."""

    @property
    def id_limit(self) -> int | Any:
        """The graph's own."""
        return self.graph.id_limit

    @property
    def edge_data(self) -> EdgeData:
        """The graph's own, without the weight."""
        return self.graph.edge_data

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """The graph's own: edges of weight 0 count."""
        return self.graph.degrees(nodes)

    def edges_at(
        self, nodes: Int[Array, "*rows"], offset: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[Int[Array, "..."], EdgeData]:
        """The graph's own."""
        return self.graph.edges_at(nodes, offset, valid)

    def row_weights(self, nodes: Int[Array, " rows"]) -> RowWeights:
        """The weights of the nodes' edges."""
        size = self.graph.degrees(nodes)
        start, none = take(self.graph.indptr, nodes), jnp.zeros_like(size)
        return RowWeights(start, size, none, size, self.cumulative, self.guide)


class AliasGraph(NamedTuple):
    """A graph with an alias table a row, an `Adjacency`; make one with `alias_tables`.

    Edge number `i` of a row gives `i` if a random word is below its `keep`, else its `alias`.
    """

    graph: Graph
    """Without the weight in its `edge_data`."""
    keep: UInt32[Array, " num_edges"]
    alias: Int[Array, " num_edges"]
    """An edge's number in its row; -1 in a row without weight."""

    @property
    def id_limit(self) -> int | Any:
        """The graph's own."""
        return self.graph.id_limit

    @property
    def edge_data(self) -> EdgeData:
        """The graph's own, without the weight."""
        return self.graph.edge_data

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """The graph's own: edges of weight 0 count."""
        return self.graph.degrees(nodes)

    def edges_at(
        self, nodes: Int[Array, "*rows"], offset: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[Int[Array, "..."], EdgeData]:
        """The graph's own."""
        return self.graph.edges_at(nodes, offset, valid)


def cumulate(graph: Graph, name: str = "weight") -> WeightedGraph:
    """Running sums of `edge_data[name]` a row, for draws by weight without replacement; on the host, once.

    Weights become whole numbers, each row's about 2^30 in all and each positive one at least 1: shares of a
    row are right to within 2^-30. Eight bytes an edge. Rows sorted by time stay so: of `sort_by_time(graph)`
    the edges before a time can be drawn by weight. Raises ValueError for edges without that name, and for
    weights that are negative, not finite or not one number an edge.

    >>> from jsage.graph import from_edges
    >>> graph = cumulate(from_edges([1, 2, 0], [0, 0, 1], num_nodes=3, weight=[1.0, 3.0, 2.0]))
    >>> (graph.cumulative / 2**30).tolist(), graph.edge_data
    ([0.25, 1.0, 1.0], {})
    """
    weight, indptr = _weights(graph, name), np.asarray(graph.indptr, np.int64)
    cumulative, guide = (np.zeros(graph.num_edges, np.int32) for _ in range(2))
    for part, ends in _parts(indptr):
        units, row = _units(weight[part], ends)
        size, slot = np.diff(ends)[row], np.arange(len(row)) - ends[row]
        sums = np.cumsum(units)
        begin = (sums - units)[np.minimum(ends[:-1], len(sums) - 1)][row]
        cumulative[part] = sums - begin
        point = -(-slot * ONE // size)
        holder = np.searchsorted(sums, begin + point, side="right") - ends[row]
        guide[part] = np.minimum(holder, size - 1)
    return WeightedGraph(without_data(graph, name), *map(jax.device_put, (cumulative, guide)))


def alias_tables(graph: Graph, name: str = "weight") -> AliasGraph:
    """An alias table of `edge_data[name]` a row, for draws by weight with replacement; on the host, once.

    Walker's method as Vose (1991, "A linear algorithm for generating random numbers with a given
    distribution") makes it, all rows at once by prefix sums in whole numbers (Hübschle-Schneider and Sanders,
    2019). Weights are rounded as `cumulate` says; eight bytes an edge. Raises ValueError as it does.

    >>> from jsage.graph import from_edges
    >>> graph = alias_tables(from_edges([1, 2, 0], [0, 0, 1], num_nodes=3, weight=[1.0, 3.0, 2.0]))
    >>> (graph.keep / 2.0**32).round(2).tolist(), graph.alias.tolist()
    ([0.5, 1.0, 1.0], [1, 1, 0])
    """
    weight, indptr = _weights(graph, name), np.asarray(graph.indptr, np.int64)
    keep, alias = np.zeros(graph.num_edges, np.uint32), np.zeros(graph.num_edges, np.int32)
    for part, ends in _parts(indptr):
        units, row = _units(weight[part], ends)
        keep[part], alias[part] = _alias(units, row, ends)
    return AliasGraph(without_data(graph, name), *map(jax.device_put, (keep, alias)))


def _alias(units: np.ndarray, row: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(keep, alias)`: heavy edges fill up light ones in order, and are light from then on.

    With `n` edges in the row and `n * units` against the row's total, what light edges lack and what heavy
    ones have over adds up to the same in each row, so running sums over all rows say who fills whom.
    """
    total = np.bincount(row, units, len(ends) - 1).astype(np.int64)[row]  # exact: below 2^53
    left, other = units * np.diff(ends)[row], np.arange(len(row))
    heavy, light = np.flatnonzero(left > total), np.flatnonzero(left < total)
    over, lack = np.cumsum((left - total)[heavy]), np.cumsum((total - left)[light])
    before = np.concatenate([[0], lack])
    other[light] = heavy[np.searchsorted(over, before[:-1], side="right")]
    last = np.searchsorted(lack, over, side="right")  # the light edge that takes more than there is
    short = before[np.minimum(last, len(light))] < over
    rest, then = heavy[short], np.flatnonzero(short) + 1
    left[rest] = total[rest] - (lack[last[short]] - over[short])
    other[rest] = heavy[then]
    share = left / np.maximum(total, 1)
    keep = np.minimum(np.rint(share * 2.0**32), 2**32 - 1).astype(np.uint32)
    return keep, np.where(total > 0, other - ends[row], -1)


def _parts(indptr: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """The edges of some rows after the other, and where those rows begin and end among them."""
    first, num_rows = 0, len(indptr) - 1
    while first < num_rows:
        stop = int(np.searchsorted(indptr, indptr[first] + _PART, side="right")) - 1
        stop = min(max(stop, first + 1), num_rows)
        if indptr[stop] > indptr[first]:
            yield slice(indptr[first], indptr[stop]), indptr[first : stop + 1] - indptr[first]
        first = stop


def _units(weight: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each weight in whole numbers, a row's less than 2^31 in all, and its row."""
    degree = np.diff(ends)
    row = np.repeat(np.arange(len(degree)), degree)
    weight = weight.astype(np.float64)
    most = np.maximum.reduceat(np.append(weight, 0.0), ends[:-1])[row]
    weight = weight / np.where(most > 0, most, 1.0)  # no sum of them is too large or too small
    total = np.bincount(row, weight, len(degree))
    scale = np.minimum(ONE, 2**31 - 2 - degree) / np.maximum(total, 1.0)
    return np.where(weight > 0, np.maximum(np.rint(weight * scale[row]), 1), 0).astype(np.int64), row


def _weights(graph: Graph, name: str) -> np.ndarray:
    if name not in graph.edge_data:
        raise ValueError(
            f"the graph's edges have no {name!r}, only {sorted(graph.edge_data)}: from_edges(..., {name}=...)"
        )
    weight = check_edge_rows(name, graph.edge_data[name], graph.num_edges)
    if weight.ndim > 1:
        raise ValueError(f"edges are drawn by one number each, but {name!r} is {weight.shape}: pass a column")
    if len(weight) and weight.min() < 0:
        raise ValueError(f"edges are drawn by weights of at least 0, got {weight.min()} in {name!r}")
    return weight
