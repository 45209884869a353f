"""Graphs as of a time: edges that come later are not there.

Edges have a `time`, and each row is in the order of it: `sort_by_time`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num

from jsage.graph.graph import Graph, TimeSortedGraph
from jsage.graph.growing import Grown, TimeSortedGrown
from jsage.graph.search import bisect
from jsage.graph.weighted import UNWEIGHTED, RowWeights, WeightedGraph
from jsage.typing import EdgeData


class GraphBefore(NamedTuple):
    """The edges earlier than `time`, an `Adjacency`: one time for all nodes, or one for each.

    A row's earlier edges are its first ones, so nothing is drawn that is filtered afterwards. The graph is
    one of `sort_by_time`, else TypeError: in other rows edges of later times would come in.

    >>> from jsage.graph import from_edges, sort_by_time
    >>> graph = sort_by_time(from_edges([1, 2, 3], [0, 0, 0], num_nodes=4, time=[30, 10, 20]))
    >>> GraphBefore(graph, jnp.array(30)).degrees(jnp.array([0, 1]))
    Array([2, 0], dtype=int32)
    """

    graph: Graph | Grown | WeightedGraph
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
        graph = self.graph.graph if isinstance(self.graph, WeightedGraph) else self.graph
        if not isinstance(graph, TimeSortedGraph | TimeSortedGrown):
            raise TypeError(
                "a graph is read as of a time in rows sorted by time, and a "
                f"{type(graph).__name__} need not have them: pass jsage.graph.sort_by_time(graph), made "
                "once on the host"
            )
        start, stop = graph.runs(nodes)
        time = jnp.broadcast_to(self.time, nodes.shape)
        return bisect(graph.edge_data["time"], start, stop, time) - start

    def edges_at(
        self, nodes: Int[Array, "*rows"], offset: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[Int[Array, "..."], EdgeData]:
        """The graph's own: earlier edges come first."""
        return self.graph.edges_at(nodes, offset, valid)

    def row_weights(self, nodes: Int[Array, " rows"]) -> RowWeights:
        """The weights of the nodes' edges, the earlier ones alone to be drawn: of a graph of `cumulate`."""
        if not isinstance(self.graph, WeightedGraph):
            raise TypeError(UNWEIGHTED.format(type(self.graph).__name__))
        return self.graph.row_weights(nodes)._replace(seen=self.degrees(nodes))
