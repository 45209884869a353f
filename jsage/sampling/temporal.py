"""Neighborhoods as of a time, which is each seed's own: nothing that comes later is drawn."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from jsage.blocks import Block, Indexed
from jsage.graph import Graph, GraphBefore, TimeSortedGrown, WeightedGraph
from jsage.sampling.draws import latest
from jsage.sampling.neighbors import append_slots, sample_neighbors, stack_hops
from jsage.typing import AnyDraw, PRNGKey


class TimedNodes(NamedTuple):
    """Nodes, each as of a time of its own."""

    nodes: Int[Array, " num_seeds"]
    time: Shaped[Array, " num_seeds"]


def sample_temporal_blocks(
    key: PRNGKey,
    graph: Graph | TimeSortedGrown | WeightedGraph,
    seeds: TimedNodes,
    fanouts: Sequence[int],
    *,
    draw: AnyDraw = latest,
) -> tuple[Block, ...]:
    """`sample_blocks` of what was before each seed's own time, in all hops.

    By default each node's latest neighbors, the last one first; `jsage.sampling.draws` has uniform draws,
    and `Weighted()` draws by weight from `cumulate(sort_by_time(graph))`. No slot holds an edge of the seed's
    time or later. The graph is one of `sort_by_time`, else TypeError.

    >>> import jax
    >>> from jsage.graph import from_edges, sort_by_time
    >>> graph = sort_by_time(from_edges([1, 2, 3, 1], [0, 0, 0, 2], num_nodes=4, time=[10, 20, 30, 40]))
    >>> seeds = TimedNodes(jnp.array([0, 0]), jnp.array([30, 11]))
    >>> (block,) = sample_temporal_blocks(jax.random.key(0), graph, seeds, fanouts=(2,))
    >>> block.src
    Array([[2, 1],
           [1, 0]], dtype=int32)
    """

    def hop(key: PRNGKey, frontier: TimedNodes, fanout: int) -> Indexed:
        return sample_neighbors(key, GraphBefore(graph, frontier.time), frontier.nodes, fanout, draw=draw)

    def extend(frontier: TimedNodes, block: Indexed, fanout: int) -> tuple[TimedNodes, Block]:
        nodes, tree = append_slots(frontier.nodes, block)
        return TimedNodes(nodes, jnp.append(frontier.time, jnp.repeat(frontier.time, fanout))), tree

    return stack_hops(key, seeds, fanouts, hop, extend=extend)
