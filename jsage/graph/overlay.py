"""A graph with new nodes beside it, as exported programs read it: how many nodes are known is an argument."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jsage.graph.adjacency import degrees, read, read_rows
from jsage.graph.graph import Graph
from jsage.typing import EdgeData

NO_NODE = 2**31 - 1
"""An id that no node has."""


class Beside(NamedTuple):
    """A graph with new nodes and their edges beside it: nothing of the graph is copied.

    New nodes have the ids from `known` on; a node's edges are those of the graph, then those of `src -> dst`.

    >>> from jsage.graph import from_edges
    >>> graph = Beside(from_edges([1], [0], 2), jnp.int32(2), jnp.array([2, 0]), jnp.array([0, 2]))
    >>> graph.degrees(jnp.array([0, 1, 2]))
    Array([2, 0, 1], dtype=int32)
    """

    graph: Graph
    known: Int[Array, ""]
    src: Int[Array, " new_edges"]
    dst: Int[Array, " new_edges"]
    """Ascending; padding comes last, with an id that no node has."""
    edge_data: EdgeData = {}

    @property
    def num_nodes(self) -> int:
        """A bound on the ids: how many nodes there are is not known while tracing."""
        return NO_NODE

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """The number of old and new edges into each node."""
        start, end = (jnp.searchsorted(self.dst, nodes, side=side) for side in ("left", "right"))
        return self._old_degrees(nodes) + (end - start).astype(jnp.int32)

    def read(
        self, nodes: Int[Array, "*#rows"], offset: Int[Array, "*rows"], live: Bool[Array, "*rows"]
    ) -> tuple[Int[Array, "*rows"], EdgeData]:
        """The source and the data of edge `offset` of each node."""
        first = self._old_degrees(nodes)
        old = live & (offset < first)
        start = jnp.searchsorted(self.dst, nodes).astype(jnp.int32) - first
        were = read(self.graph, jnp.where(nodes < self.known, nodes, 0), offset, old)
        are = read_rows(start, offset, live & ~old, self.src, self.edge_data)
        return jax.tree.map(lambda a, b: _where(old, a, b), were, are)

    def _old_degrees(self, nodes: Array) -> Array:
        return jnp.where(nodes < self.known, degrees(self.graph, jnp.where(nodes < self.known, nodes, 0)), 0)


def _where(mask: Array, yes: Array, no: Array) -> Array:
    return jnp.where(mask.reshape(mask.shape + (1,) * (yes.ndim - mask.ndim)), yes, no)
