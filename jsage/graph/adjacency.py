"""What is read of a graph: how many edges a node has, and which its edge number i is."""

from typing import Protocol, TypeAlias, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jsage._internal.arrays import take
from jsage.graph.graph import Graph
from jsage.typing import EdgeData


@runtime_checkable
class Neighbours(Protocol):
    """What is read of a graph: each node's edges by their number, in a fixed order."""

    @property
    def num_nodes(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def edge_data(self) -> EdgeData:
        """Named arrays, as a graph's."""
        ...

    def degrees(self, nodes: Int[Array, "..."]) -> Int[Array, "..."]:
        """The number of edges into each node."""
        ...

    def read(
        self, nodes: Int[Array, "..."], offset: Int[Array, "..."], live: Bool[Array, "..."]
    ) -> tuple[Int[Array, "..."], EdgeData]:
        """The source and the data of edge `offset` of each node; where not live, anything of that shape."""
        ...


AnyGraph: TypeAlias = Graph | Neighbours


def degrees(graph: AnyGraph, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
    """The number of edges into each of `nodes`.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> degrees(from_edges([1, 2], [0, 0], 3), jnp.array([2, 0]))
    Array([0, 2], dtype=int32)
    """
    if isinstance(graph, Graph):
        return take(graph.indptr, nodes + 1) - take(graph.indptr, nodes)
    return graph.degrees(nodes)


def read(
    graph: AnyGraph, nodes: Int[Array, "*#rows"], offset: Int[Array, "*rows"], live: Bool[Array, "*rows"]
) -> tuple[Int[Array, "*rows"], EdgeData]:
    """The sources and the data of each node's edge number `offset`; where not live, some legal source.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges([1, 2], [0, 0], 3)
    >>> read(graph, jnp.array([0, 2]), jnp.array([1, 0]), jnp.array([True, False]))[0]
    Array([2, 1], dtype=int32)
    """
    if isinstance(graph, Graph):
        return read_rows(take(graph.indptr, nodes), offset, live, graph.indices, graph.edge_data)
    return graph.read(nodes, offset, live)


def read_rows(
    start: Int[Array, "*#rows"],
    offset: Int[Array, "*rows"],
    live: Bool[Array, "*rows"],
    indices: Int[Array, " num_edges"],
    edge_data: EdgeData,
) -> tuple[Int[Array, "*rows"], EdgeData]:
    """`indices[start + offset]` and the data beside it; where not live, the first; zeros of an empty array.

    >>> import jax.numpy as jnp
    >>> read_rows(jnp.array([3]), jnp.array([1]), jnp.array([True]), jnp.arange(10, 20), {})[0]
    Array([14], dtype=int32)
    """
    if indices.shape[0] == 0:
        empty = {name: jnp.zeros((*live.shape, *v.shape[1:]), v.dtype) for name, v in edge_data.items()}
        return jnp.zeros(live.shape, indices.dtype), empty
    edge = jnp.where(live, start + offset, 0)
    return take(indices, edge), {name: take(values, edge) for name, values in edge_data.items()}
