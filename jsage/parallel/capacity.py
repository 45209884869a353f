"""How many ids a device sends each owner at once: measured, so that most batches take one round."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from jsage.graph import Location
from jsage.parallel.features import ShardedFeatures, wanted
from jsage.parallel.graph import ShardedGraph
from jsage.parallel.mesh import on_mesh, replicate
from jsage.parallel.sample import sample_blocks
from jsage.typing import PRNGKey

BATCHES, SLACK, STEP = 8, 1.04, 8
"""Batches that are looked at, and the slack and the step that their most ids are rounded up by."""


def measure_capacities(
    key: PRNGKey,
    graph: ShardedGraph,
    features: ShardedFeatures,
    seeds: Location,
    fanouts: Sequence[int],
    mesh: Mesh,
) -> tuple[int, ...]:
    """Capacities of each hop and of the features: what 8 batches needed and 4 %; once, before training.

    `seeds`: places `[num_batches, batch_size]`, split along axis 1, of an epoch's batches. A batch that needs
    more takes another round, and its results are the same.

    >>> from jsage.graph import from_edges
    >>> from jsage.parallel import make_mesh, shard_features, shard_graph, split
    >>> from jsage.graph import contiguous
    >>> mesh, graph = make_mesh(jax.devices()[:1]), from_edges([1, 2, 0], [0, 0, 1], num_nodes=3)
    >>> graph = shard_graph(graph, contiguous(3, 1), mesh)
    >>> features = shard_features(np.eye(3, dtype=np.float32), contiguous(3, 1), mesh)
    >>> seeds = split(Location(jnp.zeros((2, 4), jnp.int32), jnp.zeros((2, 4), jnp.int32)), mesh, dim=1)
    >>> measure_capacities(jax.random.key(0), graph, features, seeds, (2, 2), mesh)
    (4, 8, 8)
    """
    sizes = _sizes(seeds.owner.shape[1] // mesh.size, fanouts)
    tried = [-(-size // mesh.size) for size in sizes]
    seeds = Location(*(x[:BATCHES] for x in seeds))
    keys = replicate(jax.random.split(key, seeds.owner.shape[0]), mesh)

    def count(
        graph: ShardedGraph, features: ShardedFeatures, batch: tuple[PRNGKey, Location]
    ) -> Int[Array, " hops"]:
        ids, _, hops = sample_blocks(batch[0], graph, batch[1], fanouts, tried[:-1], *mesh.axis_names)
        route, *_ = wanted(features, ids, *mesh.axis_names)
        return jnp.stack([*(hop.most for hop in hops), route.most])

    def run(graph: ShardedGraph, features: ShardedFeatures, batches: Any) -> Int[Array, " hops"]:
        return jax.lax.map(partial(count, graph, features), batches).max(0)

    given = graph, features, (keys, seeds)
    most = np.asarray(jax.jit(on_mesh(run, mesh, given))(*given))
    return tuple(_rounded(int(found), size) for found, size in zip(most, sizes, strict=True))


def _sizes(num_seeds: int, fanouts: Sequence[int]) -> list[int]:
    """How many ids a device has before each hop, and at the end."""
    return [int(size) for size in num_seeds * np.cumprod([1, *(1 + fanout for fanout in fanouts)])]


def _rounded(most: int, size: int) -> int:
    return min(max(-(-int(np.ceil(SLACK * most)) // STEP) * STEP, 1), size)
