"""Sampling at the owner: frontier ids go out, drawn neighbors come back."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jsage._internal.arrays import take
from jsage._internal.checks import check_fanout
from jsage.blocks import Tree
from jsage.graph import Location
from jsage.parallel.exchange import Traffic, gather_remote, plan_route, traffic
from jsage.parallel.graph import ShardedGraph
from jsage.parallel.links import ShardedWithoutEdges
from jsage.parallel.mesh import AXIS
from jsage.parallel.place import unpack
from jsage.sampling import choose, node_bits, stack_hops
from jsage.sampling.by_node import threefry_key
from jsage.sampling.neighbors import append_slots
from jsage.typing import EdgeData, PRNGKey

ShardedAdjacency: TypeAlias = ShardedGraph | ShardedWithoutEdges
"""A sharded graph, or what `without_pairs` leaves of one."""


class Drawn(NamedTuple):
    """One hop from seeds that are places."""

    dst: Location
    """The seeds."""
    src: Location
    """`[num_seeds, fanout]`; a padded slot is its own seed."""
    mask: Bool[Array, "num_seeds fanout"]
    edge_data: EdgeData


def sample_neighbors(
    key: PRNGKey, graph: ShardedAdjacency, seeds: Location, fanout: int, capacity: int, axis: str = AXIS
) -> tuple[Drawn, Traffic]:
    """`sample_neighbors_by_node` on a sharded graph: the same draws, made by the seeds' owners.

    For use inside `on_mesh`; each device asks for its own seeds.

    >>> import jax
    >>> from jsage.graph import from_edges
    >>> from jsage.parallel import shard_graph
    >>> from jsage.parallel import make_mesh, on_mesh, replicate, split
    >>> from jsage.graph import contiguous
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> graph = shard_graph(from_edges([1, 2, 0], [0, 0, 1], num_nodes=3), contiguous(3, 1), mesh)
    >>> seeds = split(Location(jnp.array([0, 0]), jnp.array([0, 2])), mesh)
    >>> key = replicate(jax.random.key(0), mesh)
    >>> def draw(key, graph, seeds):
    ...     return sample_neighbors(key, graph, seeds, 3, capacity=2)[0]
    >>> jax.jit(on_mesh(draw, mesh, (key, graph, seeds)))(key, graph, seeds).src.local
    Array([[1, 2, 0],
           [2, 2, 2]], dtype=int32)
    """
    check_fanout(fanout)
    route = plan_route(seeds, axis)
    words, data = gather_remote(route, lambda local: _draw(key, graph, local, fanout), capacity, axis)
    mask = words[0] >= 0
    drawn = unpack(words, graph.id_limit)
    src = Location(*(jnp.where(mask, new, own[:, None]) for new, own in zip(drawn, seeds, strict=True)))
    return Drawn(seeds, src, mask, data), traffic(route, capacity)


def _draw(key: PRNGKey, graph: ShardedAdjacency, local: Int[Array, " rows"], fanout: int) -> Any:
    """What each of these rows draws, at their owner: the sources' words, -1 in the padding, and edge data."""
    low, *high = (take(word, local) for word in graph.names)
    offset, mask = choose(node_bits(key, low, fanout, *high), graph.degrees(local))
    (first, *rest), data = graph.edges_at(local, offset, mask)
    return (jnp.where(mask, first, -1), *rest), data


def sample_blocks(
    key: PRNGKey,
    graph: ShardedAdjacency,
    seeds: Location,
    fanouts: Sequence[int],
    capacities: Sequence[int],
    axis: str = AXIS,
) -> tuple[Location, tuple[Tree, ...], tuple[Traffic, ...]]:
    """`jsage.sampling.sample_blocks_by_node` on a sharded graph: `(ids, blocks, traffic of each hop)`.

    `blocks` are trees over the features of `ids` (`fetch`): what `as_tree` makes of the blocks that one
    device samples for the same seeds under the same key. For use inside `on_mesh`; each device has seeds of
    its own and the same key. `capacities`: one a hop (`measure_capacities`). Raises ValueError unless there
    are as many as fanouts, and one at least.

    >>> import jax
    >>> from jsage.graph import from_edges
    >>> from jsage.parallel import shard_graph
    >>> from jsage.parallel import make_mesh, on_mesh, replicate, split
    >>> from jsage.graph import contiguous
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> graph = shard_graph(from_edges([1, 2, 0], [0, 0, 1], num_nodes=3), contiguous(3, 1), mesh)
    >>> seeds, key = split(Location(jnp.array([0]), jnp.array([0])), mesh), replicate(jax.random.key(0), mesh)
    >>> def draw(key, graph, seeds):
    ...     return sample_blocks(key, graph, seeds, (2, 1), capacities=(2, 2))
    >>> ids, blocks, _ = jax.jit(on_mesh(draw, mesh, (key, graph, seeds)))(key, graph, seeds)
    >>> ids.local, [block.num_dst for block in blocks]
    (Array([0, 1, 2, ..., 0, 2], dtype=int32), [3, 1])
    """
    if len(capacities) != len(fanouts):
        raise ValueError(
            f"expected one capacity for each fanout, got fanouts {tuple(fanouts)} and capacities "
            f"{tuple(capacities)}: measure_capacities gives them"
        )
    counts = []

    def hop(key: PRNGKey, frontier: Location, size: tuple[int, int]) -> Drawn:
        drawn, count = sample_neighbors(key, graph, frontier, *size, axis)
        counts.append(count)
        return drawn

    sizes = tuple(zip(fanouts, capacities, strict=True))
    first, *trees = stack_hops(threefry_key(key), seeds, sizes, hop)
    ids, tree = append_slots(first.dst, first)
    return ids, (tree, *trees), tuple(counts)
