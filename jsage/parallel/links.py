"""Pairs to predict on sharded tables: their edges left out of all neighborhoods, their negatives drawn.

The devices tell one another the pairs of a batch, each owner looks for them in its own rows, and draws from
what is left: the results are those of `jsage.graph.without_pairs` on one device. A step reads

    left = without_pairs(graph, batch.src, batch.dst, batch.mask, placement)
    ids, blocks, traffic = sample_blocks(key, left, placement.locate(batch.seeds), fanouts, capacities)

with `batch` a `jsage.LinkBatch` of the device's own pairs. Nodes are told by their ids there, so a graph has
at most 2^31 of them; `placement` is one of `jsage.graph.partition`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int

from jsage._internal.arrays import take
from jsage.graph import Placement
from jsage.graph.adjacency import over_slots
from jsage.graph.search import bisect_by
from jsage.graph.without_edges import HiddenRuns, VisibleRows, hide_runs
from jsage.parallel.graph import ShardedGraph
from jsage.parallel.mesh import AXIS, on_mesh
from jsage.parallel.place import PackedLocations, unpack
from jsage.sampling.negatives import NegativeSampler, Shape
from jsage.typing import EdgeData, PRNGKey

Nodes = Int[Array, " b"]

SHARE = 2
"""How many times its even share of a batch's pairs an owner looks for at once."""


class ShardedWithoutEdges(NamedTuple):
    """A sharded graph without some of its edges, for `sample_blocks`; make one with `without_pairs`."""

    graph: ShardedGraph
    hidden: HiddenRuns
    """The device's own."""

    @property
    def id_limit(self) -> int | Any:
        """The graph's own."""
        return self.graph.id_limit

    @property
    def names(self) -> PackedLocations:
        """The graph's own."""
        return self.graph.names

    def degrees(self, nodes: Int[Array, "*rows"]) -> Int[Array, "*rows"]:
        """The number of edges left into each of the device's rows."""
        return self.hidden.rows(self.graph.indptr, nodes).degree

    def edges_at(
        self, nodes: Int[Array, "*rows"], offset: Int[Array, "..."], valid: Bool[Array, "..."]
    ) -> tuple[PackedLocations, EdgeData]:
        """The source and the data of each row's edge number `offset` among those left."""
        rows = self.hidden.rows(self.graph.indptr, nodes)
        rows = VisibleRows(*(over_slots(part, offset.ndim) for part in rows))
        return self.graph.edges(self.hidden.position(rows, offset), valid)


def without_pairs(
    graph: ShardedGraph,
    src: Nodes,
    dst: Nodes,
    mask: Bool[Array, " b"],
    placement: Placement,
    axis: str = AXIS,
) -> ShardedWithoutEdges:
    """`jsage.graph.without_pairs` of the pairs of all devices, each of which passes its own.

    The edges `src -> dst` and `dst -> src` are in no row of any device. The graph's rows must be sorted
    (`sort_rows`). One `all_gather` of the pairs; beside it, memory for them and nothing of the shards' size.
    For use inside `on_mesh`. Raises ValueError for a placement that is not the graph's, and for more than
    2^31 nodes.

    >>> from jsage.graph import from_edges
    >>> from jsage.parallel import make_mesh, on_mesh, replicate, shard_graph
    >>> from jsage.graph import contiguous
    >>> mesh, placement = make_mesh(jax.devices()[:1]), contiguous(3, 1)
    >>> graph = shard_graph(from_edges(src=[1, 2, 0, 0], dst=[0, 0, 1, 2], num_nodes=3), placement, mesh)
    >>> pair = replicate((jnp.array([0]), jnp.array([1]), jnp.array([True])), mesh)
    >>> def degrees(graph, pair):
    ...     left = without_pairs(graph, *pair, placement)
    ...     return left.degrees(jnp.arange(3))
    >>> jax.jit(on_mesh(degrees, mesh, (graph, pair)))(graph, pair)
    Array([1, 0, 1], dtype=int32)
    """
    _check(graph.indptr.shape[0] - 1, placement, jax.lax.axis_size(axis))
    ends = jnp.stack([jnp.where(mask, src, -1), dst], 1)
    src, dst = jax.lax.all_gather(ends, axis, tiled=True).T
    valid = src >= 0
    src = jnp.where(valid, src, dst)  # a node's id, as others are
    into = placement.locate(jnp.concatenate([dst, src]))
    mine = (into.owner == jax.lax.axis_index(axis)) & jnp.concatenate([valid, valid])
    start, lengths = _find(graph, placement, (~mine, jnp.concatenate([src, dst]), into.local), axis)
    return ShardedWithoutEdges(graph, hide_runs(start, lengths, graph.sources[0].shape[0]))


def local_share(key: PRNGKey, sampler: NegativeSampler, shape: Shape, axis: str = AXIS) -> Int[Array, "..."]:
    """The device's share, of this shape, of what `sampler(key, whole shape)` draws on one device.

    The first axis is split. All devices draw the whole and keep their own part: for the negatives of a batch,
    from any sampler of `jsage.sampling.negatives`. `uniform` is two numbers; the table of `by_degree` takes 8
    bytes a node on every device. The key is a Threefry key, the same on all devices.

    >>> from jsage.sampling.negatives import uniform
    >>> from jsage.parallel import make_mesh, on_mesh, replicate
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> given = replicate((jax.random.key(0), uniform(9)), mesh)
    >>> jax.jit(on_mesh(lambda key, sampler: local_share(key, sampler, (4, 2)), mesh, given))(*given).shape
    (4, 2)
    """
    whole = sampler(key, (jax.lax.axis_size(axis) * shape[0], *shape[1:]))
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(axis) * shape[0], shape[0])


def sort_rows(graph: ShardedGraph, placement: Placement, mesh: Mesh) -> ShardedGraph:
    """`jsage.graph.sort_rows` of a sharded graph: sources of each row in the order of their ids.

    Once, before training; it takes some copies of the shards meanwhile. Parallel edges keep their order, and
    rows that ascend stay as they are. Raises ValueError for a placement that is not the graph's.

    >>> from jsage.graph import from_edges
    >>> from jsage.parallel import make_mesh, shard_graph
    >>> from jsage.graph import contiguous
    >>> mesh, placement = make_mesh(jax.devices()[:1]), contiguous(3, 1)
    >>> graph = shard_graph(from_edges([2, 0, 1], [0, 0, 1], num_nodes=3), placement, mesh)
    >>> sort_rows(graph, placement, mesh).sources
    (Array([0, 2, 1], dtype=int32),)
    """
    (axis,) = mesh.axis_names
    _check(graph.indptr.shape[0] // mesh.size - 1, placement, mesh.size)

    def sort(graph: ShardedGraph) -> ShardedGraph:
        number, rows = jnp.arange(graph.sources[0].shape[0], dtype=jnp.int32), graph.indptr.shape[0] - 1
        row = jnp.searchsorted(graph.indptr, number, side="right").astype(jnp.int32)
        ids: Any = placement.nodes(*unpack(graph.sources, rows))
        *_, order = jax.lax.sort((row, ids, number), num_keys=3)
        sources = tuple(take(word, order) for word in graph.sources)
        return graph._replace(
            sources=sources, edge_data={name: take(x, order) for name, x in graph.edge_data.items()}
        )

    return jax.jit(on_mesh(sort, mesh, (graph,), PartitionSpec(axis)))(graph)


def _find(
    graph: ShardedGraph, placement: Placement, wanted: tuple[Array, Array, Array], axis: str
) -> tuple[Array, Array]:
    """Where the edges `src -> row` of `(not mine, src, row)` start, and how many there are, in any order.

    Own rows come first, and are searched a share at a time until all are done.
    """
    num = wanted[0].shape[0]
    share = min(-(-SHARE * num // jax.lax.axis_size(axis)), num)
    others, src, row = jax.lax.sort(wanted, num_keys=1, is_stable=False)
    rows = graph.indptr.shape[0] - 1

    def source(at: Array) -> Any:
        return placement.nodes(*unpack(tuple(take(word, at) for word in graph.sources), rows))

    def search(number: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        first = jnp.minimum(number * share, num - share)  # the last share begins among those done
        own, target, local = (jax.lax.dynamic_slice_in_dim(x, first, share) for x in (~others, src, row))
        local = jnp.where(own, local, 0)
        ends = take(graph.indptr, local), take(graph.indptr, local + 1)
        start, stop = (bisect_by(source, *ends, target, after=after) for after in (False, True))
        starts = jax.lax.dynamic_update_slice_in_dim(found[0], start, first, 0)
        lengths = jnp.where(own, stop - start, 0)
        return starts, jax.lax.dynamic_update_slice_in_dim(found[1], lengths, first, 0)

    turns = ((~others).sum(dtype=jnp.int32) + share - 1) // share
    none = jnp.zeros(num, jnp.int32)
    return jax.lax.fori_loop(0, turns, search, (none, none))


def _check(rows: int, placement: Placement, shards: int) -> None:
    if (placement.shards, placement.rows) != (shards, rows):
        raise ValueError(
            f"the graph has {shards} shards of {rows} rows, but the placement {placement.shards} of "
            f"{placement.rows}: pass the one that the graph was sharded by"
        )
