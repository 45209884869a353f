"""Features whose rows are split over devices, and the rows of a batch fetched from their owners."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jsage._internal.arrays import IN_BOUNDS, accumulator_dtype, dense, take
from jsage.data import lanes_of, whole_lanes
from jsage.graph import Graph, Location, Placement, out_degrees
from jsage.graph.search import bisect
from jsage.graph.sparse import refuse_sparse
from jsage.parallel.exchange import Route, Traffic, gather_remote, plan_route, scatter_add_remote, traffic
from jsage.parallel.mesh import AXIS, assemble, replicate
from jsage.typing import HostArray


class CachedRows(NamedTuple):
    """Rows that each device has a copy of, in the order of their owners and of their rows there."""

    rows: Float[Array, "num_cached d"]
    local: Int[Array, " num_cached"]
    start: Int[Array, " shards+1"]
    """`local[start[o]:start[o + 1]]` are owner `o`'s."""


class ShardedFeatures(NamedTuple):
    """One row a node, on the device that owns it; make one with `shard_features`."""

    rows: Float[Array, "rows d"]
    hot: CachedRows | None = None


def shard_features(
    features: Any,
    placement: Placement,
    mesh: Mesh,
    *,
    hot: Int[HostArray, " num_cached"] | None = None,
    lanes: int | None = None,
) -> ShardedFeatures:
    """The rows of every node on the device that owns it, and those of the nodes `hot` on every device.

    Shards are padded to `placement.rows` rows, and rows to a multiple of `lanes`, as `to_device_table` does:
    128 on a TPU, 1 elsewhere. `most_sampled` chooses nodes worth their memory. Raises ValueError for a
    placement over other than the mesh's number of devices.

    >>> from jsage.parallel import make_mesh
    >>> from jsage.graph import contiguous
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> shard_features(np.ones((3, 2), np.float32), contiguous(3, 1), mesh, hot=np.array([2])).hot.local
    Array([2], dtype=int32)
    """
    check_shards(placement, mesh)
    refuse_sparse(features, "shard_features", "copy them to each device, replicate(features, mesh)")
    table = np.asarray(dense(features))
    if lanes is None:
        lanes = lanes_of(mesh.devices.flat[0])
    missing = whole_lanes(table.shape[1], lanes) - table.shape[1]

    def part(shard: int) -> np.ndarray:
        nodes = placement.globals(shard)
        return np.pad(table[nodes], ((0, placement.rows - len(nodes)), (0, missing)))

    rows = assemble(part, mesh)
    if hot is None or len(hot) == 0:
        return ShardedFeatures(rows)
    nodes = np.unique(np.asarray(hot))
    owner, local = placement.locate(nodes)
    order = np.lexsort((local, owner))
    start = np.searchsorted(owner[order], np.arange(placement.shards + 1)).astype(np.int32)
    copies = np.pad(table[nodes[order]], ((0, 0), (0, missing)))
    return ShardedFeatures(
        rows, replicate(CachedRows(jnp.asarray(copies), jnp.asarray(local[order]), jnp.asarray(start)), mesh)
    )


def most_sampled(graph: Graph, count: int) -> Int[np.ndarray, " num_cached"]:
    """The `count` nodes of most edges out of them, which samplers meet most often; all where there are fewer.

    >>> from jsage.graph import from_edges
    >>> most_sampled(from_edges([2, 2, 1], [0, 1, 0], num_nodes=3), 2)
    array([2, 1])
    """
    return np.argsort(-np.asarray(out_degrees(graph)), kind="stable")[:count]


def fetch(
    features: ShardedFeatures, ids: Location, capacity: int, axis: str = AXIS
) -> tuple[Float[Array, "num_ids d"], Traffic]:
    """The rows of every id, repeated ones too, and what it took to fetch them; for use inside `on_mesh`.

    A table of learned embeddings gets the sum of its rows' gradients, over all devices.

    >>> from jsage.parallel import make_mesh, on_mesh, split
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> ids = split(Location(jnp.array([0, 0, 0]), jnp.array([2, 1, 2])), mesh)
    >>> features = split(ShardedFeatures(jnp.array([[1.0], [2.0], [3.0]])), mesh)
    >>> rows, counts = jax.jit(on_mesh(lambda *args: fetch(*args, 2), mesh, (features, ids)))(features, ids)
    >>> rows.ravel(), counts.distinct, counts.rounds
    (Array([3., 2., 3.], dtype=float32), Array(2, dtype=int32), Array(1, dtype=int32))
    """
    route, found, slot = wanted(features, ids, axis)
    rows: Any = _rows(features.rows, route, capacity, axis)
    if features.hot is not None:
        copies = jax.lax.stop_gradient(take(features.hot.rows, slot))
        rows = jnp.where(found[:, None], copies, rows)
    return rows, traffic(route, capacity)


def wanted(
    features: ShardedFeatures, ids: Location, axis: str = AXIS
) -> tuple[Route, Bool[Array, " num_ids"], Int[Array, " num_ids"]]:
    """Whom to ask for which rows, and which ids have a copy here, and in which row of the copies.

    >>> from jsage.parallel import make_mesh, on_mesh, split
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> ids = split(Location(jnp.array([0, 0, 0]), jnp.array([2, 1, 2])), mesh)
    >>> features = split(ShardedFeatures(jnp.ones((3, 1))), mesh)
    >>> route, *_ = jax.jit(on_mesh(wanted, mesh, (features, ids)))(features, ids)
    >>> route.start
    Array([0, 2], dtype=int32)
    """
    if features.hot is None:
        none = jnp.zeros(ids.owner.shape, jnp.int32)
        return plan_route(ids, axis), none > 0, none
    found, slot = _in_copies(features.hot, ids)
    owner = jnp.where(found, jax.lax.axis_size(axis), ids.owner)
    return plan_route(Location(owner, ids.local), axis), found, slot


def check_shards(placement: Placement, mesh: Mesh) -> None:
    """Raise ValueError unless there is one shard a device.

    >>> from jsage.parallel import make_mesh
    >>> from jsage.graph import contiguous
    >>> check_shards(contiguous(3, 1), make_mesh(jax.devices()[:1]))
    """
    if placement.shards != mesh.size:
        raise ValueError(
            f"a mesh of {mesh.size} devices takes as many shards, got a placement over {placement.shards}"
        )


def _in_copies(hot: CachedRows, ids: Location) -> tuple[Bool[Array, " num_ids"], Int[Array, " num_ids"]]:
    """Whether each id has a copy here, and in which row."""
    stop = take(hot.start, ids.owner + 1)
    slot = bisect(hot.local, take(hot.start, ids.owner), stop, ids.local)
    inside = slot < stop
    slot = jnp.where(inside, slot, 0)
    return inside & (take(hot.local, slot) == ids.local), slot


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rows(table: Array, route: Route, capacity: int, axis: str) -> Array:
    return gather_remote(route, lambda local: take(table, local), capacity, axis)


def _forward(table: Array, route: Route, capacity: int, axis: str) -> tuple[Array, Any]:
    return _rows(table, route, capacity, axis), (table, route)


def _backward(capacity: int, axis: str, saved: Any, cotangent: Array) -> tuple[Array, None]:
    table, route = saved

    def add(grad: Array, local: Array, rows: Array) -> Array:
        return grad.at[local].add(rows, **IN_BOUNDS)

    rows = cotangent.astype(accumulator_dtype(table))
    grad = scatter_add_remote(route, rows, capacity, add, jnp.zeros(table.shape, rows.dtype), axis)
    return grad.astype(table.dtype), None


_rows.defvjp(_forward, _backward)
