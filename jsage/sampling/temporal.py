"""Graphs as of a time: edges that come later are not there.

Edges have a `time`, and each row is in the order of it: `from_edges` keeps the order that edges are given in.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num, Shaped

from jsage._internal.arrays import take
from jsage.blocks import Block, Indexed
from jsage.graph import Graph
from jsage.graph.search import bisect
from jsage.sampling.draws import latest
from jsage.sampling.neighbors import append_slots, sample_neighbors, stack_hops
from jsage.typing import DrawFn, EdgeData, PRNGKey


class TimedNodes(NamedTuple):
    """Nodes, each as of a time of its own."""

    nodes: Int[Array, " num_seeds"]
    time: Shaped[Array, " num_seeds"]


class GraphBefore(NamedTuple):
    """The edges earlier than `time`, an `Adjacency`: one time for all nodes, or one for each.

    A row's earlier edges are its first ones, so nothing is drawn that is filtered afterwards.

    >>> from jsage.graph import from_edges
    >>> graph = from_edges([1, 2, 3], [0, 0, 0], num_nodes=4, time=[10, 20, 30])
    >>> GraphBefore(graph, jnp.array(30)).degrees(jnp.array([0, 1]))
    Array([2, 0], dtype=int32)
    """

    graph: Graph
    time: Num[Array, "*#rows"]

    @property
    def id_limit(self) -> int | Any:
        """The graph's own."""
        return self.graph.id_limit

    @property
    def edge_data(self) -> EdgeData:
        """The graph's own."""
        return self.graph.edge_data

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """The number of earlier edges into each node: a binary search of its row."""
        start, stop = take(self.graph.indptr, nodes), take(self.graph.indptr, nodes + 1)
        time = jnp.broadcast_to(self.time, nodes.shape)
        return bisect(self.graph.edge_data["time"], start, stop, time) - start

    def edges_at(
        self, nodes: Int[Array, "*rows"], offset: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[Int[Array, "..."], EdgeData]:
        """The graph's own: earlier edges come first."""
        return self.graph.edges_at(nodes, offset, valid)


def sample_temporal_blocks(
    key: PRNGKey, graph: Graph, seeds: TimedNodes, fanouts: Sequence[int], *, draw: DrawFn = latest
) -> tuple[Block, ...]:
    """`sample_blocks` of what was before each seed's own time, in all hops.

    By default each node's latest neighbors, the last one first; `jsage.sampling.draws` has uniform draws. No
    slot holds an edge of the seed's time or later. The graph's rows are in order of `edge_data["time"]`.

    >>> import jax
    >>> from jsage.graph import from_edges
    >>> graph = from_edges([1, 2, 3, 1], [0, 0, 0, 2], num_nodes=4, time=[10, 20, 30, 40])
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
