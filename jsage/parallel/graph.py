"""A graph whose rows are split over devices: each holds the edges into the nodes that it owns."""

from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from jsage._internal.arrays import pad_rows, run_positions, take
from jsage.graph import Graph, Placement, TimeSortedGraph
from jsage.graph.adjacency import over_slots
from jsage.parallel.features import check_shards
from jsage.parallel.mesh import assemble
from jsage.parallel.place import PackedLocations, pack
from jsage.typing import EdgeData


class ShardedGraph(NamedTuple):
    """In-neighbors by owner: on each device the arrays of a small graph, padded to one size.

    Make one with `shard_graph`. A shard holds fewer than 2^31 edges; all together may hold more.
    """

    indptr: Int[Array, " rows+1"]
    """The first edge of each row, within its shard."""
    sources: PackedLocations
    """Where each edge's source is."""
    names: PackedLocations
    """Each row's id in the whole graph, which its draws are keyed by: bits 0 to 31, and 32 to 47 if any."""
    edge_data: EdgeData = {}

    @property
    def id_limit(self) -> int | Any:
        """Rows of the device, which are its nodes' ids there."""
        return self.indptr.shape[0] - 1

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """The number of edges into each of the device's rows."""
        return take(self.indptr, nodes + 1) - take(self.indptr, nodes)

    def edges_at(
        self, nodes: Int[Array, "*rows"], offset: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[PackedLocations, EdgeData]:
        """As `Adjacency` says, but that a source is the words of its place."""
        return self.edges(over_slots(take(self.indptr, nodes), offset.ndim) + offset, valid)

    def edges(
        self, position: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[PackedLocations, EdgeData]:
        """The sources and the data of the device's edges at these positions."""
        edge = jnp.where(valid, position, 0)
        data = {name: take(values, edge) for name, values in self.edge_data.items()}
        return tuple(take(word, edge) for word in self.sources), data


class ShardedTimeSortedGraph(ShardedGraph):
    """A sharded graph whose rows are in order of time: what `shard_graph` makes of a `TimeSortedGraph`."""

    __slots__ = ()

    def _replace(self, **fields: Any) -> ShardedGraph:  # type: ignore[override]
        return ShardedGraph(*super()._replace(**fields))

    def runs(self, nodes: Int[Array, "*rows"]) -> tuple[Int[Array, "*rows"], Int[Array, "*rows"]]:
        """`(start, stop)`: where the edges into each of the device's rows are, a run in order of time."""
        return take(self.indptr, nodes), take(self.indptr, nodes + 1)


def shard_graph(graph: Graph, placement: Placement, mesh: Mesh) -> ShardedGraph:
    """The edges into every node on the device that owns it, sources as places.

    Edges of a node keep their order, so draws are those of the whole graph. Raises ValueError for a placement
    over other than the mesh's number of devices.

    >>> import jax
    >>> from jsage.graph import from_edges
    >>> from jsage.parallel import make_mesh
    >>> from jsage.graph import contiguous
    >>> graph = from_edges([1, 2, 0], [0, 0, 1], num_nodes=3)
    >>> shard_graph(graph, contiguous(3, 1), make_mesh(jax.devices()[:1])).sources
    (Array([1, 2, 0], dtype=int32),)
    """
    check_shards(placement, mesh)
    indptr, indices = np.asarray(graph.indptr, np.int64), np.asarray(graph.indices)
    data = {name: np.asarray(values) for name, values in graph.edge_data.items()}
    degrees = np.diff(indptr)
    kind = ShardedTimeSortedGraph if isinstance(graph, TimeSortedGraph) else ShardedGraph

    def part(shard: int) -> ShardedGraph:
        nodes = placement.globals(shard)
        ends = np.cumsum(np.pad(degrees[nodes], (1, 0)))
        edge = run_positions(indptr[nodes], degrees[nodes])
        words = pack(*placement.locate(indices[edge]), placement.rows, placement.shards)
        unpadded = ends, words, to_global_ids(nodes), {name: values[edge] for name, values in data.items()}
        return pad_shard(kind(*cast(Any, unpadded)), placement.rows, most)

    most = max(int(degrees[placement.globals(shard)].sum()) for shard in range(placement.shards))
    return assemble(part, mesh)


def pad_shard(shard: ShardedGraph, rows: int, num_edges: int) -> ShardedGraph:
    """One device's part of a sharded graph, in NumPy, with room for `rows` rows and `num_edges` edges.

    All parts that `assemble` joins have equal sizes. Raises ValueError for 2^31 edges or more.

    >>> shard = ShardedGraph(np.array([0, 2]), (np.array([1, 0]),), (np.array([5], np.uint32),))
    >>> pad_shard(shard, rows=2, num_edges=3)[:2]
    (array([0, 2, 2], dtype=int32), (array([1, 0, 0]),))
    """
    if num_edges >= 2**31:
        raise ValueError(
            f"a shard holds fewer than 2^31 edges (offsets are int32), got {num_edges}: take more shards, or "
            "balance them by edges"
        )
    indptr = np.asarray(shard.indptr).astype(np.int32)
    ends = np.pad(indptr, (0, rows + 1 - len(indptr)), mode="edge")
    sources, names = (
        tuple(pad_rows(np.asarray(word), max(length, 1)) for word in words)
        for words, length in ((shard.sources, num_edges), (shard.names, rows))
    )
    data = {name: pad_rows(np.asarray(values), max(num_edges, 1)) for name, values in shard.edge_data.items()}
    return type(shard)(*cast(Any, (ends, sources, names, data)))


def to_global_ids(nodes: Int[np.ndarray, " rows"], num_nodes: int | None = None) -> tuple[np.ndarray, ...]:
    """Ids as words that `jsage.sampling.node_bits` takes: bits 0 to 31, and 32 to 47 where any id has them.

    `num_nodes`, of all shards, has all of them take as many words.

    >>> to_global_ids(np.array([7, 2**33 + 1]))
    (array([7, 1], dtype=uint32), array([0, 2], dtype=uint32))
    """
    wide = np.asarray(nodes).astype(np.uint64)
    low = (wide & 0xFFFFFFFF).astype(np.uint32)
    largest = wide.max(initial=0) if num_nodes is None else num_nodes - 1
    return (low,) if largest < 2**32 else (low, (wide >> 32).astype(np.uint32))
