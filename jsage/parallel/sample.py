"""Sampling at the owner: frontier ids go out, drawn neighbours come back."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jsage._internal.arrays import take
from jsage.blocks import Tree
from jsage.parallel.exchange import Traffic, ask, plan, traffic
from jsage.parallel.graph import ShardedGraph
from jsage.parallel.links import ShardedWithout
from jsage.parallel.mesh import AXIS
from jsage.parallel.place import Place, to_place
from jsage.sampling import Gaps, Rows, choose, hop_key, node_bits
from jsage.typing import EdgeData, PRNGKey

AnyGraph: TypeAlias = ShardedGraph | ShardedWithout
"""A sharded graph, or what `without_pairs` leaves of one."""


class Drawn(NamedTuple):
    """One hop from seeds that are places."""

    src: Place
    """`[num_seeds, fanout]`; a padded slot is its own seed."""
    mask: Bool[Array, "num_seeds fanout"]
    edge_data: EdgeData


def sample_neighbors(
    key: PRNGKey, graph: AnyGraph, seeds: Place, fanout: int, capacity: int, axis: str = AXIS
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
    >>> seeds = split(Place(jnp.array([0, 0]), jnp.array([0, 2])), mesh)
    >>> key = replicate(jax.random.key(0), mesh)
    >>> def draw(key, graph, seeds):
    ...     return sample_neighbors(key, graph, seeds, 3, capacity=2)[0]
    >>> jax.jit(on_mesh(draw, mesh, (key, graph, seeds)))(key, graph, seeds).src.local
    Array([[1, 2, 0],
           [2, 2, 2]], dtype=int32)
    """
    if fanout < 1:
        raise ValueError(f"a fanout is a positive number of neighbours, got {fanout}: leave the hop out")
    whole, gaps = graph if isinstance(graph, ShardedWithout) else (graph, None)
    route = plan(seeds, axis)
    words, data = ask(route, lambda local: _draw(key, (whole, gaps), local, fanout), capacity, axis)
    mask = words[0] >= 0
    drawn = to_place(words, whole.names[0].shape[0])
    src = Place(*(jnp.where(mask, new, own[:, None]) for new, own in zip(drawn, seeds, strict=True)))
    return Drawn(src, mask, data), traffic(route, capacity)


def _draw(
    key: PRNGKey, given: tuple[ShardedGraph, Gaps | None], local: Int[Array, " rows"], fanout: int
) -> Any:
    """What each of these rows draws, at their owner: the sources' words, -1 in the padding, and edge data."""
    graph, gaps = given
    low, *high = (take(word, local) for word in graph.names)
    bits = node_bits(key, low, fanout, *high)
    if gaps is None:
        start = take(graph.indptr, local)
        offset, mask = choose(bits, take(graph.indptr, local + 1) - start)
        edge = start[:, None] + offset
    else:
        rows = gaps.rows(graph.indptr, local)
        offset, mask = choose(bits, rows.degree)
        edge = gaps.stand(Rows(*(part[:, None] for part in rows)), offset)
    edge = jnp.where(mask, edge, 0)
    first, *rest = (take(word, edge) for word in graph.sources)
    return (jnp.where(mask, first, -1), *rest), {name: take(x, edge) for name, x in graph.edge_data.items()}


def sample_blocks(
    key: PRNGKey,
    graph: AnyGraph,
    seeds: Place,
    fanouts: Sequence[int],
    capacities: Sequence[int],
    axis: str = AXIS,
) -> tuple[Place, tuple[Tree, ...], tuple[Traffic, ...]]:
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
    >>> seeds, key = split(Place(jnp.array([0]), jnp.array([0])), mesh), replicate(jax.random.key(0), mesh)
    >>> def draw(key, graph, seeds):
    ...     return sample_blocks(key, graph, seeds, (2, 1), capacities=(2, 2))
    >>> ids, blocks, _ = jax.jit(on_mesh(draw, mesh, (key, graph, seeds)))(key, graph, seeds)
    >>> ids.local, [block.num_dst for block in blocks]
    (Array([0, 1, 2, ..., 0, 2], dtype=int32), [3, 1])
    """
    if not fanouts or len(capacities) != len(fanouts):
        raise ValueError(
            f"expected one fanout a layer, such as (25, 10), and one capacity for each, got fanouts "
            f"{tuple(fanouts)} and capacities {tuple(capacities)}: measure_capacities gives them"
        )
    blocks, counts, frontier = [], [], seeds
    for hop, (fanout, capacity) in enumerate(zip(fanouts, capacities, strict=True)):
        drawn, count = sample_neighbors(hop_key(key, hop), graph, frontier, fanout, capacity, axis)
        frontier = Place(*(jnp.concatenate([a, b.ravel()]) for a, b in zip(frontier, drawn.src, strict=True)))
        blocks.insert(0, Tree(drawn.mask, drawn.edge_data))
        counts.append(count)
    return frontier, tuple(blocks), tuple(counts)
