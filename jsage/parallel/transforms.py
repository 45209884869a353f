"""What a sharded graph's edges tell of nodes on other devices: degrees, weights, the nodes worth copies.

All edges are walked, a batch at a time, and every batch is an exchange as a step of training has them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jsage._internal.arrays import IN_BOUNDS, take
from jsage.graph import Location
from jsage.parallel.exchange import Route, gather_remote, plan_route, scatter_add_remote
from jsage.parallel.features import CachedRows, ShardedFeatures
from jsage.parallel.graph import ShardedGraph
from jsage.parallel.mesh import AXIS, on_mesh
from jsage.parallel.place import unpack

BATCH = 2**17
"""Edges of a device that are looked at at once."""


def out_degrees(graph: ShardedGraph, axis: str = AXIS) -> Int[Array, " rows"]:
    """How many edges go out of each node, of whatever devices; for use inside `on_mesh`.

    >>> from jsage.graph import from_edges
    >>> from jsage.parallel import make_mesh, shard_graph
    >>> from jsage.graph import contiguous
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> graph = shard_graph(from_edges([1, 2, 2], [0, 0, 1], num_nodes=3), contiguous(3, 1), mesh)
    >>> jax.jit(on_mesh(out_degrees, mesh, (graph,)))(graph)
    Array([0, 1, 2], dtype=int32)
    """
    none = jnp.zeros(graph.indptr.shape[0] - 1, jnp.int32)

    def add(count: Array, local: Array, ones: Array) -> Array:
        return count.at[local].add(ones, **IN_BOUNDS)

    def batch(route: Route, capacity: int, count: Array) -> tuple[Array, None]:
        ones = jnp.ones(route.owner.shape[0], jnp.int32)
        return scatter_add_remote(route, ones, capacity, add, count, axis), None

    return _walk(graph, batch, none, axis)[0]


def symmetric_weights(graph: ShardedGraph, mesh: Mesh) -> ShardedGraph:
    """`jsage.graph.symmetric_weights` of a sharded graph: `edge_data["weight"]`, float32.

    `sqrt((1 + in_degree(dst)) / (1 + out_degree(src)))` times the weight that there is, of each edge.

    >>> from jsage.graph import from_edges
    >>> from jsage.parallel import make_mesh, shard_graph
    >>> from jsage.graph import contiguous
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> star = from_edges([1, 2, 3, 0, 0, 0], [0, 0, 0, 1, 2, 3], num_nodes=4)
    >>> graph = shard_graph(star, contiguous(4, 1), mesh)
    >>> symmetric_weights(graph, mesh).edge_data["weight"].round(2).tolist()
    [1.4..., 1.4..., 1.4..., 0.7..., 0.7..., 0.7...]
    """
    (axis,) = mesh.axis_names

    def weigh(graph: ShardedGraph) -> Float[Array, " num_edges"]:
        out = jnp.sqrt(1 + out_degrees(graph, axis).astype(jnp.float32))

        def batch(route: Route, capacity: int, _: None) -> tuple[None, Array]:
            return None, gather_remote(route, lambda local: take(out, local), capacity, axis)

        degree, size = jnp.diff(graph.indptr), graph.sources[0].shape[0]
        into = jnp.repeat(jnp.sqrt(1 + degree.astype(jnp.float32)), degree, total_repeat_length=size)
        valid = jnp.arange(size) < graph.indptr[-1]
        there = jnp.asarray(graph.edge_data.get("weight", 1), jnp.float32)
        return jnp.where(valid, into / _walk(graph, batch, None, axis)[1] * there, 0)

    weight = jax.jit(on_mesh(weigh, mesh, (graph,), PartitionSpec(axis)))(graph)
    return graph._replace(edge_data={**graph.edge_data, "weight": weight})


def cache_rows(graph: ShardedGraph, features: ShardedFeatures, count: int, mesh: Mesh) -> ShardedFeatures:
    """The features with copies on all devices of the `count` rows of most edges out, as `most_sampled`.

    `shard_features(..., hot=most_sampled(graph, count))` for tables that no host holds whole. Raises
    ValueError for a count below 1.

    >>> import numpy as np
    >>> from jsage.graph import from_edges
    >>> from jsage.parallel import make_mesh, shard_features, shard_graph
    >>> from jsage.graph import contiguous
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> graph = shard_graph(from_edges([1, 2, 2], [0, 0, 1], num_nodes=3), contiguous(3, 1), mesh)
    >>> features = shard_features(np.eye(3, dtype=np.float32), contiguous(3, 1), mesh)
    >>> cache_rows(graph, features, 2, mesh).hot.local
    Array([1, 2], dtype=int32)
    """
    if count < 1:
        raise ValueError(f"count is a positive number of rows to copy, got {count}: leave the copies out")
    (axis,) = mesh.axis_names

    def copy(graph: ShardedGraph, rows: Float[Array, "rows d"]) -> CachedRows:
        here, local = jax.lax.top_k(out_degrees(graph, axis), min(count, rows.shape[0]))
        degree, local = (jax.lax.all_gather(x, axis, tiled=True) for x in (here, local))
        top = jax.lax.top_k(degree, min(count, degree.shape[0]))[1]
        owner, local = jax.lax.sort((top // here.shape[0], take(local, top)), num_keys=2)
        start = jnp.searchsorted(owner, jnp.arange(mesh.size + 1)).astype(jnp.int32)
        capacity = max(1, 2 * top.shape[0] // mesh.size)
        copies = gather_remote(
            plan_route(Location(owner, local), axis), lambda local: take(rows, local), capacity, axis
        )
        return CachedRows(copies, local, start)

    given = graph, features.rows
    return ShardedFeatures(features.rows, jax.jit(on_mesh(copy, mesh, given))(*given))


def _walk(
    graph: ShardedGraph, batch: Callable[[Route, int, Any], tuple[Any, Any]], state: Any, axis: str
) -> tuple[Any, Any]:
    """`batch(route, capacity, state)` of the sources of one batch of edges after another.

    The last state, and what came back of every edge.
    """
    shards, size = jax.lax.axis_size(axis), graph.sources[0].shape[0]
    length = min(BATCH, size)
    capacity = min(length, 2 * -(-length // shards))
    padding = -size % length
    words = tuple(jnp.pad(word, (0, padding)).reshape(-1, length) for word in graph.sources)
    valid = (jnp.arange(size + padding) < graph.indptr[-1]).reshape(-1, length)

    def step(state: Any, given: tuple[Any, Array]) -> tuple[Any, Any]:
        place = unpack(given[0], graph.indptr.shape[0] - 1)
        owner = jnp.where(given[1], place.owner, shards)
        return batch(plan_route(Location(owner, place.local), axis), capacity, state)

    state, told = jax.lax.scan(step, state, (words, valid))
    return state, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], told)
