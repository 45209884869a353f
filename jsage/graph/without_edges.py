"""A graph without some of its edges, left out where they are: inside jit, at the cost of those alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jsage._internal.arrays import take
from jsage.graph.adjacency import edges_of_rows
from jsage.graph.graph import Graph
from jsage.graph.search import bisect, edge_range
from jsage.typing import EdgeData


class VisibleRows(NamedTuple):
    """Where the edges of some rows are among those that are left."""

    first: Int[Array, "*rows"]
    """How many edges are left in the rows before."""
    degree: Int[Array, "*rows"]
    """How many are left in the row."""
    low: Int[Array, "*rows"]
    """The row's runs are those from `low` to `high - 1`."""
    high: Int[Array, "*rows"]


class HiddenRuns(NamedTuple):
    """Runs of edges that are skipped where they are; make one with `hide_runs`."""

    start: Int[Array, " runs"]
    """The first position of each run among the edges, ascending."""
    hidden: Int[Array, " runs+1"]
    """How many edges the first `j` runs hold: 0, then running sums."""

    def rows(self, indptr: Int[Array, " ends"], nodes: Int[Array, "*rows"]) -> VisibleRows:
        """What is left of the nodes' rows."""
        ends = take(indptr, jnp.stack([nodes, nodes + 1]))
        low, high = runs = jnp.searchsorted(self.start, ends).astype(jnp.int32)
        first, end = ends - take(self.hidden, runs)
        return VisibleRows(first, end - first, low, high)

    def position(self, rows: VisibleRows, offset: Int[Array, "*slots"]) -> Int[Array, "*slots"]:
        """The position of each row's edge number `offset` among those left; rows broadcast.

        Edge `c` of all that are left is at `c + hidden[j]`, with `j` runs before it. These are the runs
        that have no more than `c` edges left before them: a search among the row's own.
        """
        number, left = rows.first + offset, self.start - self.hidden[:-1]
        return number + take(self.hidden, bisect(left, rows.low, rows.high, number, after=True))


def hide_runs(start: Int[Array, " runs"], lengths: Int[Array, " runs"], num_edges: int) -> HiddenRuns:
    """Runs of edges to skip, given in any order: apart from one another or equal, some of length 0.

    >>> hide_runs(jnp.array([4, 0, 1, 4]), jnp.array([2, 0, 1, 2]), 9)
    HiddenRuns(start=Array([1, 4, 4, 9], dtype=int32), hidden=Array([0, 1, 1, 3, 3], dtype=int32))
    """
    start = jnp.where(lengths > 0, start, num_edges)  # empty runs come last
    start, lengths = jax.lax.sort_key_val(start, lengths)
    lengths = jnp.where(start == jnp.append(start[1:], -1), 0, lengths)  # of equal runs the last counts
    return HiddenRuns(start, jnp.pad(jnp.cumsum(lengths, dtype=jnp.int32), (1, 0)))


class GraphWithoutEdges(NamedTuple):
    """A graph without some runs of its edges, in place: an `Adjacency`. Make one with `without_pairs`.

    So every sampler takes it, and `exact_blocks`: a pair's score from draws that never change, or from whole
    neighborhoods, with its own edge out.
    """

    graph: Graph
    hidden: HiddenRuns

    @property
    def id_limit(self) -> int | Any:
        """The graph's own."""
        return self.graph.id_limit

    @property
    def edge_data(self) -> EdgeData:
        """The graph's own."""
        return self.graph.edge_data

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """The number of edges left into each node."""
        return self.hidden.rows(self.graph.indptr, nodes).degree

    def edges_at(
        self, nodes: Int[Array, "*rows"], offset: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[Int[Array, "..."], EdgeData]:
        """The source and the data of each node's edge number `offset` among those left."""
        # Slot-major, as it is drawn: a TPU pads the last axis to 128.
        slots, front = tuple(range(nodes.ndim, offset.ndim)), tuple(range(offset.ndim - nodes.ndim))
        offset, valid = (jnp.moveaxis(array, slots, front) for array in (offset, valid))
        rows = self.hidden.rows(self.graph.indptr, nodes)
        edge = self.hidden.position(VisibleRows(*(jnp.expand_dims(part, front) for part in rows)), offset)
        found = edges_of_rows(edge, jnp.zeros_like(edge), valid, self.graph.indices, self.edge_data)
        return jax.tree.map(lambda array: jnp.moveaxis(array, front, slots), found)


def without_pairs(
    graph: Graph, src: Int[Array, " b"], dst: Int[Array, " b"], mask: Bool[Array, " b"]
) -> GraphWithoutEdges:
    """The graph without the edges `src -> dst` and `dst -> src` of the pairs under the mask, inside jit.

    Parallel edges all go; a pair that is no edge, or comes twice, does no harm. It takes memory and sorting
    for `2 b` runs of edges and `log b` steps for each edge that is read, nothing of the graph's size. The
    graph is one of sorted rows (`sort_rows`), else TypeError.

    >>> from jsage.graph import from_edges, sort_rows
    >>> graph = sort_rows(from_edges(src=[1, 2, 0, 0], dst=[0, 0, 1, 2], num_nodes=3))
    >>> left = without_pairs(graph, jnp.array([0]), jnp.array([1]), jnp.array([True]))
    >>> left.degrees(jnp.arange(3))
    Array([1, 0, 1], dtype=int32)
    """
    ends = jnp.concatenate([src, dst]), jnp.concatenate([dst, src])
    start, stop = edge_range(graph, *ends)
    lengths = jnp.where(jnp.concatenate([mask, mask]), stop - start, 0)
    return GraphWithoutEdges(graph, hide_runs(start, lengths, graph.num_edges))
