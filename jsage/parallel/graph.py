"""A graph whose rows are split over devices: each holds the edges into the nodes that it owns."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jsage.graph import Graph
from jsage.parallel.features import check_shards
from jsage.parallel.mesh import assemble
from jsage.parallel.place import Place, Placement, Words, to_words
from jsage.typing import EdgeData


class ShardedGraph(NamedTuple):
    """In-neighbours by owner: on each device the arrays of a small graph, padded to one size.

    Make one with `shard_graph`. A shard holds fewer than 2^31 edges; all together may hold more.
    """

    indptr: Int[Array, " rows+1"]
    """The first edge of each row, within its shard."""
    sources: Words
    """Where each edge's source is."""
    names: Words
    """Each row's id in the whole graph, which its draws are keyed by: bits 0 to 31, and 32 to 47 if any."""
    edge_data: EdgeData = {}


class Rows(NamedTuple):
    """Nodes and the edges into them, on the host, for one shard: ids are those of the whole graph."""

    nodes: Int[np.ndarray, " num_rows"]
    degree: Int[np.ndarray, " num_rows"]
    sources: Int[np.ndarray, " num_edges"]
    edge_data: dict[str, np.ndarray]


def shard_graph(graph: Graph, placement: Placement, mesh: Mesh) -> ShardedGraph:
    """The edges into every node on the device that owns it, sources as places.

    Edges of a node keep their order, so draws are those of the whole graph. Raises ValueError for a placement
    over other than the mesh's number of devices.

    >>> import jax
    >>> from jsage.graph import from_edges
    >>> from jsage.parallel.mesh import make_mesh
    >>> from jsage.parallel.place import Whole
    >>> graph = from_edges([1, 2, 0], [0, 0, 1], num_nodes=3)
    >>> shard_graph(graph, Whole(3), make_mesh(jax.devices()[:1])).sources
    (Array([1, 2, 0], dtype=int32),)
    """
    check_shards(placement, mesh)
    indptr, indices = np.asarray(graph.indptr, np.int64), np.asarray(graph.indices)
    data = {name: np.asarray(values) for name, values in graph.edge_data.items()}
    degrees = np.diff(indptr)

    def part(shard: int) -> ShardedGraph:
        nodes = placement.globals(shard)
        degree = degrees[nodes]
        first = np.cumsum(degree) - degree
        edge = np.arange(degree.sum()) + np.repeat(indptr[nodes] - first, degree)
        rows = Rows(nodes, degree, indices[edge], {name: values[edge] for name, values in data.items()})
        return make_shard(rows, placement, most)

    most = max(int(degrees[placement.globals(shard)].sum()) for shard in range(placement.shards))
    return assemble(part, mesh)


def make_shard(rows: Rows, placement: Placement, num_edges: int) -> ShardedGraph:
    """One device's part of a sharded graph, in NumPy, padded to `placement.rows` rows and `num_edges` edges.

    Raises ValueError for 2^31 edges or more.

    >>> from jsage.parallel.place import Whole
    >>> rows = Rows(np.array([0, 1]), np.array([0, 2]), np.array([1, 0]), {})
    >>> make_shard(rows, Whole(2), num_edges=3).sources
    (array([1, 0, 0], dtype=int32),)
    """
    if num_edges >= 2**31:
        raise ValueError(
            f"a shard holds fewer than 2^31 edges (offsets are int32), got {num_edges}: take more shards, or "
            "balance them by edges"
        )
    ends = np.pad(np.cumsum(rows.degree), (1, 0))
    ends = np.pad(ends, (0, placement.rows - len(rows.degree)), mode="edge").astype(np.int32)
    words = to_words(Place(*placement.locate(rows.sources)), placement.rows, placement.shards)
    names = [_padded(word, placement.rows) for word in to_names(rows.nodes)]
    length = max(num_edges, 1)
    data = {name: jnp.asarray(_padded(values, length)) for name, values in rows.edge_data.items()}
    return ShardedGraph(ends, tuple(_padded(word, length) for word in words), tuple(names), data)


def to_names(nodes: Int[np.ndarray, " rows"]) -> tuple[np.ndarray, ...]:
    """Ids as words that `jsage.keyed.node_bits` takes: bits 0 to 31, and 32 to 47 where any id has them.

    >>> to_names(np.array([7, 2**33 + 1]))
    (array([7, 1], dtype=uint32), array([0, 2], dtype=uint32))
    """
    wide = np.asarray(nodes).astype(np.uint64)
    low = (wide & 0xFFFFFFFF).astype(np.uint32)
    return (low,) if wide.max(initial=0) < 2**32 else (low, (wide >> 32).astype(np.uint32))


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    return np.pad(values, ((0, length - len(values)), *((0, 0),) * (values.ndim - 1)))
