"""Minibatches of edges to predict: both ends and their negatives in one set of blocks, the edges left out.

A message that passes along the very edge that is to be predicted tells the answer, so the edges under
supervision and their reverses are taken out of the graph of their step: in the step, exactly, at every hop.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jsage.blocks.layout import Block
from jsage.graph import Graph, without_pairs
from jsage.sampling.draws import without_replacement
from jsage.sampling.neighbors import sample_blocks
from jsage.sampling.temporal import TimedNodes
from jsage.typing import AnyDraw, HostArray, PRNGKey

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

    def timed(self, time: Shaped[HostArray, " b"]) -> TimedNodes:
        """The seeds, each as of the time of its pair, for `sample_temporal_blocks`; padding has one too.

        Before that time the pair's own event is not visible, nor any other of that very time. Raises
        ValueError for negatives that the whole batch shares, which have no one time.
        """
        if self.negatives.ndim != 2 or time.shape != self.src.shape:
            raise ValueError(
                f"each pair has a time, and negatives of its own, [b, q] with b = {self.src.shape[0]}: got "
                f"{time.shape} times and negatives of shape {self.negatives.shape}"
            )
        own = jnp.repeat(time, self.negatives.shape[1])
        return TimedNodes(self.seeds, jnp.concatenate([time, time, own]))


def sample_link_blocks(
    key: PRNGKey,
    graph: Graph,
    batch: LinkBatch,
    fanouts: Sequence[int],
    *,
    exclude: bool = True,
    draw: AnyDraw = without_replacement,
) -> tuple[Block, ...]:
    """`sample_blocks` of a batch's seeds, drawn as if the edges under supervision were not in the graph.

    All edges `src -> dst` and `dst -> src` of valid pairs are out of every neighborhood of every hop, and the
    draw is uniform over the others: what `sample_blocks` draws, slot for slot, from the graph without them. A
    row with nothing left is empty. `exclude=False` leaves them in, where the graph does not hold them.
    `split` parts the embeddings again. The graph is one of `jsage.graph.sort_rows`, else TypeError: of events
    `sample_temporal_blocks(key, graph, batch.timed(time), fanouts)` leaves out what is not before each pair.

    Differs from DGL's `as_edge_prediction_sampler(exclude="reverse_id")`, which draws first and then drops
    the edges, so that rows come short of their fanout.

    >>> import jax
    >>> from jsage.graph import from_edges, sort_rows
    >>> graph = sort_rows(from_edges(src=[1, 2, 0, 0], dst=[0, 0, 1, 2], num_nodes=4))
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
