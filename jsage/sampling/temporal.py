"""Neighborhoods as of a time, which is each seed's own: nothing that comes later is drawn."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from jsage.blocks import Block, Indexed
from jsage.graph import Graph, TimeSortedGrown, WeightedGraph, before
from jsage.graph.adjacency import Adjacency
from jsage.graph.as_of import VisibleFn
from jsage.sampling.draws import latest
from jsage.sampling.neighbors import append_slots, sample_neighbors, stack_hops
from jsage.typing import AnyDraw, HostArray, PRNGKey


class TimedNodes(NamedTuple):
    """Nodes, each as of a time of its own."""

    nodes: Int[HostArray, " num_seeds"]
    time: Shaped[HostArray, " num_seeds"]


class Causal(NamedTuple):
    """Each hop as of the event that led there: `sample_temporal_blocks(..., visible=Causal())`.

    A neighbor's own neighbors are then those that it had when its event happened, as in TGAT (Xu et al.,
    2020, "Inductive representation learning on temporal graphs") and DyGLib (Yu et al., 2023); without it
    those that it has at the seed's time, as in PyG.
    """

    visible: VisibleFn = before

    def __call__(self, graph: Any, time: Shaped[HostArray, "*#rows"]) -> Adjacency:
        """The view of the graph as of a time."""
        return self.visible(graph, time)


def sample_temporal_blocks(
    key: PRNGKey,
    graph: Graph | TimeSortedGrown | WeightedGraph,
    seeds: TimedNodes,
    fanouts: Sequence[int],
    *,
    draw: AnyDraw = latest,
    visible: VisibleFn = before,
) -> tuple[Block, ...]:
    """`sample_blocks` of what was before each seed's own time, in all hops.

    By default each node's latest neighbors, the last one first; `jsage.sampling.draws` has uniform draws,
    `Recent(decay)` prefers late ones, and `Weighted()` draws by weight from `cumulate(sort_by_time(graph))`.
    No slot holds an edge of the seed's time or later, as `visible` says: `jsage.graph.before` (the default),
    `up_to` with those of that very time, `within(width)` the last ticks alone, and `Causal()` each hop as of
    its own event's time. It bounds what can be drawn, so nothing is left out of a draw afterwards. Each
    slot's `age` is in `edge_data`, as of the time that its row is read: `GraphBefore` has its law.

    The graph is one of `sort_by_time`, and times are of its kind, else TypeError.

    >>> import jax
    >>> from jsage.graph import from_edges, sort_by_time
    >>> graph = sort_by_time(from_edges([1, 2, 3, 1], [0, 0, 0, 2], num_nodes=4, time=[10, 20, 30, 40]))
    >>> seeds = TimedNodes(jnp.array([0, 0]), jnp.array([30, 11]))
    >>> (block,) = sample_temporal_blocks(jax.random.key(0), graph, seeds, fanouts=(2,))
    >>> block.src, block.edge_data["age"]
    (Array([[2, 1],
           [1, 0]], dtype=int32), Array([[10, 20],
           [ 1,  0]], dtype=int32))
    """

    def hop(key: PRNGKey, frontier: TimedNodes, fanout: int) -> Indexed:
        return sample_neighbors(key, visible(graph, frontier.time), frontier.nodes, fanout, draw=draw)

    def extend(frontier: TimedNodes, block: Indexed, fanout: int) -> tuple[TimedNodes, Block]:
        nodes, tree = append_slots(frontier.nodes, block)
        return TimedNodes(nodes, append_times(frontier.time, block, causal=isinstance(visible, Causal))), tree

    return stack_hops(key, seeds, fanouts, hop, extend=extend)


def append_times(
    time: Shaped[HostArray, " num_dst"], block: Any, *, causal: bool = False
) -> Shaped[Array, " num_rows"]:
    """The times of a hop's rows, then the one that each slot's own neighbors are read at.

    >>> two, events = jnp.array([[1, 2]]), {"time": jnp.array([[4, 3]])}
    >>> block = Indexed(jnp.array([0]), two, two > 0, events)
    >>> append_times(jnp.array([9]), block), append_times(jnp.array([9]), block, causal=True)
    (Array([9, 9, 9], dtype=int32), Array([9, 4, 3], dtype=int32))
    """
    slots = jnp.repeat(time, block.mask.shape[1])
    if causal:
        slots = jnp.where(block.mask.ravel(), block.edge_data["time"].ravel(), slots)
    return jnp.append(time, slots)
