"""What is read of a graph: how many edges go into a node, and which is its edge number `i`.

A sampler asks nothing else, so whatever answers these two questions can be sampled: a `Graph`, one that
grows, one with new nodes beside it, one without some edges, one as of a time.
"""

from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jsage._internal.arrays import take
from jsage.typing import EdgeData, HostArray


@runtime_checkable
class Adjacency(Protocol):
    """Each node's edges by their number, in a fixed order."""

    @property
    def edge_data(self) -> EdgeData:
        """Named arrays, one row an edge; in what order only `edges_at` knows."""
        ...

    @property
    def id_limit(self) -> int | Any:
        """A bound on ids: all are below it, and not every id below it need be a node's."""
        ...

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """The number of edges into each node."""
        ...

    def edges_at(
        self, nodes: Int[Array, "*rows"], offset: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[Int[Array, "..."], EdgeData]:
        """The source and the data of edge number `offset` of each node; where not valid, of some edge.

        `offset` and `valid` have the axes of `nodes`, and slots behind them if they have more.
        """
        ...


def edges_of_rows(
    start: Int[Array, "*rows"],
    offset: Int[Array, "..."],
    valid: Bool[Array, "..."],
    indices: Int[HostArray, " num_edges"],
    edge_data: EdgeData,
) -> tuple[Int[Array, "..."], EdgeData]:
    """`indices[start + offset]` and the data beside it; where not valid, the first; zeros of an empty array.

    >>> edges_of_rows(jnp.array([3]), jnp.array([[1]]), jnp.array([[True]]), jnp.arange(10, 20), {})[0]
    Array([[14]], dtype=int32)
    """
    if indices.shape[0] == 0:
        empty = {name: jnp.zeros((*valid.shape, *v.shape[1:]), v.dtype) for name, v in edge_data.items()}
        return jnp.zeros(valid.shape, indices.dtype), empty
    edge = jnp.where(valid, over_slots(start, offset.ndim) + offset, 0)
    return take(indices, edge), {name: take(values, edge) for name, values in edge_data.items()}


def over_slots(rows: Array, ndim: int) -> Array:
    """An array of one entry a row, with an axis of length 1 for each axis of slots.

    >>> over_slots(jnp.array([3, 4]), 2).shape
    (2, 1)
    """
    return rows.reshape(rows.shape + (1,) * (ndim - rows.ndim))
