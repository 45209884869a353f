"""Neighbour sampling as a pure function of a key, inside the jitted step.

Shapes follow from the number of seeds and the fanouts alone, so nothing recompiles.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jsage._internal.arrays import take
from jsage.blocks import Block, Indexed, Segments, Tree
from jsage.graph import Graph
from jsage.sampling.draws import without_replacement
from jsage.typing import DrawFn, PRNGKey

Seeds: TypeAlias = Int[Array, " num_seeds"]
HopFn: TypeAlias = Callable[[PRNGKey, Seeds, int], Indexed]
"""`(key, seeds, fanout) -> block`: one hop, as `sample_neighbors` draws it from some graph."""


def sample_neighbors(
    key: PRNGKey, graph: Graph, seeds: Seeds, fanout: int, *, draw: DrawFn = without_replacement
) -> Indexed:
    """Up to `fanout` in-neighbours of each seed, as an indexed block over node ids.

    With fewer than `fanout` neighbours a seed takes them all, once each, and the other slots are padding:
    mask False, pointing at the seed itself. `edge_data` is gathered alike, and costs nothing unless it
    is used. Seeds are node ids in `0..num_nodes-1`; `jsage.graph.validate` checks them on the host.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3)
    >>> block = sample_neighbors(jax.random.key(0), graph, jnp.array([0, 2]), 3)
    >>> block.src
    Array([[1, 2, 0],
           [2, 2, 2]], dtype=int32)
    >>> block.mask.sum(1)
    Array([2, 0], dtype=int32)
    """
    start = take(graph.indptr, seeds)
    degree = take(graph.indptr, seeds + 1) - start
    offset, mask = draw(key, degree, fanout)
    if graph.indices.shape[0] == 0:
        empty = {name: jnp.zeros((*mask.shape, *v.shape[1:]), v.dtype) for name, v in graph.edge_data.items()}
        return Indexed(seeds, jnp.broadcast_to(seeds[:, None], mask.shape), mask, empty)
    edge = jnp.where(mask, start[:, None] + offset, 0)
    src = jnp.where(mask, take(graph.indices, edge), seeds[:, None])
    return Indexed(seeds, src, mask, {name: take(value, edge) for name, value in graph.edge_data.items()})


def sample_blocks(
    key: PRNGKey, graph: Graph, seeds: Seeds, fanouts: Sequence[int], *, draw: DrawFn = without_replacement
) -> tuple[Block, ...]:
    """The blocks of a minibatch (Hamilton et al., 2017, Algorithm 2), one a hop, in the order layers run.

    `fanouts[0]` is the hop next to the seeds: `(25, 10)` draws 25 neighbours of each seed, then 10 of
    each of the `num_seeds * (1 + 25)` nodes met so far. `blocks[0]` reads the feature table by node id;
    the others are trees over the layer before; `blocks[-1]`'s destinations are the seeds.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3)
    >>> first, last = sample_blocks(jax.random.key(0), graph, jnp.array([0, 2]), fanouts=(2, 3))
    >>> first.dst
    Array([0, 2, 1, 2, 2, 2], dtype=int32)
    >>> last.mask.shape
    (2, 2)
    """

    def hop(key: PRNGKey, frontier: Seeds, fanout: int) -> Indexed:
        return sample_neighbors(key, graph, frontier, fanout, draw=draw)

    return stack_hops(key, seeds, fanouts, hop)


def stack_hops(key: PRNGKey, seeds: Seeds, fanouts: Sequence[int], hop: HopFn) -> tuple[Block, ...]:
    """The blocks of a minibatch, as `sample_blocks` gives them, of hops that `hop` draws.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3)
    >>> hop = lambda key, seeds, fanout: sample_neighbors(key, graph, seeds, fanout)
    >>> [block.num_dst for block in stack_hops(jax.random.key(0), jnp.array([0, 2]), (2, 3), hop)]
    [6, 2]
    """
    if not fanouts:
        raise ValueError(
            "sample_blocks needs one fanout a layer, got none: pass for instance fanouts=(25, 10)"
        )
    hops, frontier = [], seeds
    for number, fanout in enumerate(fanouts):
        hops.append(hop(jax.random.fold_in(key, number), frontier, fanout))
        frontier = jnp.concatenate([frontier, hops[-1].src.ravel()])
    return (hops[-1], *(Tree(block.mask, block.edge_data) for block in reversed(hops[:-1])))


def full_block(graph: Graph, *, slots: bool = False) -> Segments:
    """Every edge of a graph as one block: all nodes read their whole neighbourhoods (on the host).

    `slots=True` adds the `[num_nodes, max degree]` table that aggregators over ordered slots (the LSTM)
    read. For a model of `L` layers pass `(full_block(graph),) * L`.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> full_block(from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3)).sum(jnp.eye(3))
    Array([[0., 1., 1.],
           [1., 0., 0.],
           [0., 0., 0.]], dtype=float32)
    """
    indptr = np.asarray(graph.indptr)
    degree = np.diff(indptr)
    dst = np.repeat(np.arange(degree.size, dtype=np.int32), degree)
    order = None
    if slots:
        slot = np.arange(max(degree.max(initial=0), 1), dtype=np.int32)
        order = jnp.asarray(np.where(slot < degree[:, None], indptr[:-1, None] + slot, -1))
    return Segments(
        jnp.asarray(graph.indices), jnp.asarray(dst), jnp.asarray(degree), graph.edge_data, None, order
    )
