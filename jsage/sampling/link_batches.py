"""Minibatches of edges to predict: both ends and their negatives in one set of blocks, the edges left out.

A message that passes along the very edge that is to be predicted tells the answer, so the edges under
supervision and their reverses are taken out of the graph of their step: in the step, exactly, at every hop.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jsage._internal.arrays import take
from jsage.blocks.layout import Block
from jsage.graph import Graph
from jsage.graph.adjacency import edges_of_rows
from jsage.graph.search import bisect, edge_range
from jsage.sampling.draws import without_replacement
from jsage.sampling.neighbors import sample_blocks
from jsage.typing import DrawFn, EdgeData, PRNGKey

Nodes = Int[Array, " b"]


class LinkBatch(NamedTuple):
    """Pairs under supervision and nodes that are no partners of theirs; all are node ids, padding included.

    >>> mask = jnp.array([True, False])
    >>> batch = LinkBatch(jnp.array([0, 1]), jnp.array([2, 3]), jnp.array([[4], [5]]), mask)
    >>> batch.seeds, batch.seed_mask
    (Array([0, 1, 2, 3, 4, 5], dtype=int32), Array([ True, False,  True, False,  True, False], dtype=bool))
    """

    src: Int[Array, " b"]
    dst: Int[Array, " b"]
    negatives: Int[Array, "*b q"]
    """`[b, q]`, each pair's own, or `[q]`, shared by the whole batch."""
    mask: Bool[Array, " b"]
    """The pairs that are not padding."""

    @property
    def seeds(self) -> Int[Array, " num_seeds"]:
        """The nodes to embed: `src`, `dst`, and the negatives row by row."""
        return jnp.concatenate([self.src, self.dst, self.negatives.ravel()])

    @property
    def seed_mask(self) -> Bool[Array, " num_seeds"]:
        """Which seeds are not padding; shared negatives never are."""
        shape = self.negatives.shape
        own = jnp.broadcast_to(self.mask[:, None], shape) if len(shape) == 2 else jnp.ones(shape, bool)
        return jnp.concatenate([self.mask, self.mask, own.ravel()])


def sample_link_blocks(
    key: PRNGKey,
    graph: Graph,
    batch: LinkBatch,
    fanouts: Sequence[int],
    *,
    exclude: bool = True,
    draw: DrawFn = without_replacement,
) -> tuple[Block, ...]:
    """`sample_blocks` of a batch's seeds, drawn as if the edges under supervision were not in the graph.

    All edges `src -> dst` and `dst -> src` of valid pairs are out of every neighborhood of every hop, and the
    draw is uniform over the others: what `sample_blocks` draws, slot for slot, from the graph without them. A
    row with nothing left is empty. `exclude=False` leaves them in, where the graph does not hold them.
    `split` parts the embeddings again. The graph's rows must be sorted (`jsage.graph.sort_rows`).

    Differs from DGL's `as_edge_prediction_sampler(exclude="reverse_id")`, which draws first and then drops
    the edges, so that rows come short of their fanout.

    >>> import jax
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0, 0], dst=[0, 0, 1, 2], num_nodes=4)
    >>> batch = LinkBatch(jnp.array([0]), jnp.array([1]), jnp.array([[3]]), jnp.array([True]))
    >>> (block,) = sample_link_blocks(jax.random.key(0), graph, batch, fanouts=(2,))
    >>> block.dst, block.src[0], block.mask.sum(1)
    (Array([0, 1, 3], dtype=int32), Array([2, 0], dtype=int32), Array([1, 0, 0], dtype=int32))
    """
    _check(batch)
    left = without_pairs(graph, batch.src, batch.dst, batch.mask) if exclude else graph
    return sample_blocks(key, left, batch.seeds, fanouts, draw=draw)


def split(
    h: Float[Array, "num_seeds d"], batch: LinkBatch
) -> tuple[Float[Array, "b d"], Float[Array, "b d"], Float[Array, "*b q d"]]:
    """The embeddings of the sources, of the destinations and of the negatives, in the shapes of the batch.

    >>> batch = LinkBatch(jnp.array([0]), jnp.array([1]), jnp.array([[3, 2]]), jnp.array([True]))
    >>> src, dst, negatives = split(jnp.eye(4), batch)
    >>> src.shape, dst.shape, negatives.shape
    ((1, 4), (1, 4), (1, 2, 4))
    """
    _check(batch)
    pairs, rows = batch.src.shape[0], 2 * batch.src.shape[0] + batch.negatives.size
    if h.shape[0] != rows:
        raise ValueError(
            f"a batch of {pairs} pairs and {batch.negatives.size} negatives has {rows} seeds, got "
            f"{h.shape[0]} rows: pass what the last layer gave for this batch"
        )
    return h[:pairs], h[pairs : 2 * pairs], h[2 * pairs :].reshape(*batch.negatives.shape, h.shape[1])


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


def without_pairs(graph: Graph, src: Nodes, dst: Nodes, mask: Bool[Array, " b"]) -> GraphWithoutEdges:
    """The graph without the edges `src -> dst` and `dst -> src` of the pairs under the mask, inside jit.

    Parallel edges all go; a pair that is no edge, or comes twice, does no harm. It takes memory and sorting
    for `2 b` runs of edges and `log b` steps for each edge that is read, nothing of the graph's size. The
    graph's rows must be sorted.

    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0, 0], dst=[0, 0, 1, 2], num_nodes=3)
    >>> left = without_pairs(graph, jnp.array([0]), jnp.array([1]), jnp.array([True]))
    >>> left.degrees(jnp.arange(3))
    Array([1, 0, 1], dtype=int32)
    """
    ends = jnp.concatenate([src, dst]), jnp.concatenate([dst, src])
    start, stop = edge_range(graph, *ends)
    lengths = jnp.where(jnp.concatenate([mask, mask]), stop - start, 0)
    return GraphWithoutEdges(graph, hide_runs(start, lengths, graph.num_edges))


def _check(batch: LinkBatch) -> None:
    b = batch.src.shape[0]
    if batch.negatives.ndim not in (1, 2) or (batch.negatives.ndim == 2 and batch.negatives.shape[0] != b):
        raise ValueError(
            f"negatives must be [b, q] with b = {b}, or [q] for the whole batch, got shape "
            f"{batch.negatives.shape}"
        )
    for name in ("dst", "mask"):
        if getattr(batch, name).shape != (b,):
            raise ValueError(
                f"{name} must have one entry a pair, {b}, got shape {getattr(batch, name).shape}"
            )
