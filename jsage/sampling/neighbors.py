"""Neighbor sampling as a pure function of a key, inside the jitted step.

Shapes follow from the number of seeds and the fanouts alone, so nothing recompiles. A graph is whatever
answers as an `Adjacency`; other neighborhoods than `sample_neighbors` are a `HopFn` for `stack_hops`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer

from jsage._internal.checks import as_ids, check_fanouts
from jsage.blocks import Indexed, Segments, Tree
from jsage.blocks.layout import Block
from jsage.graph import Graph
from jsage.graph.adjacency import Adjacency
from jsage.sampling.draws import without_replacement
from jsage.typing import AnyDraw, GraphDraw, HopFn, HostArray, PRNGKey

Seeds: TypeAlias = Integer[HostArray, " num_seeds"]
ExtendFn: TypeAlias = Callable[[Any, Any, Any], tuple[Any, Block]]
"""`(frontier, block, fanout) -> (frontier, block)`: where the next hop starts, the block over its rows."""


def sample_neighbors(
    key: PRNGKey, graph: Adjacency, seeds: Seeds, fanout: int, *, draw: AnyDraw = without_replacement
) -> Indexed:
    """Up to `fanout` in-neighbors of each seed, as an indexed block over node ids.

    With fewer than `fanout` neighbors a seed takes them all, once each, and the other slots are padding:
    mask False, pointing at the seed itself. `edge_data` is gathered alike, and costs nothing unless it
    is used.

    Seeds are node ids in `0 .. graph.id_limit - 1`, -1 is none of them. Nothing checks that in a compiled
    program: other ids draw arbitrary edges or none, without an error. `jsage.graph.validate` finds them on
    the host, and jax's `checkify.index_checks` inside jit (docs/sampling.md). Raises TypeError for seeds that
    are no integers, and ValueError for `fanout < 1`.

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
    seeds = as_ids(seeds, "seeds")
    if isinstance(draw, GraphDraw):
        offset, mask = draw.offsets(key, graph, seeds, fanout)
    else:
        offset, mask = draw(key, graph.degrees(seeds), fanout)
    return read_slots(graph, seeds, offset, mask)


def read_slots(
    graph: Adjacency,
    seeds: Seeds,
    offset: Int[Array, "num_seeds fanout"],
    mask: Bool[Array, "num_seeds fanout"],
) -> Indexed:
    """The block of each seed's edges number `offset`: what a draw of them makes of a graph.

    >>> import jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3)
    >>> read_slots(graph, jnp.array([0]), jnp.array([[1, 0]]), jnp.array([[True, False]])).src
    Array([[2, 0]], dtype=int32)
    """
    seeds = as_ids(seeds, "seeds")
    src, edge_data = graph.edges_at(seeds, offset, mask)
    return Indexed(seeds, jnp.where(mask, src, seeds[:, None]), mask, edge_data)


def sample_blocks(
    key: PRNGKey,
    graph: Adjacency,
    seeds: Seeds,
    fanouts: Sequence[int],
    *,
    draw: AnyDraw = without_replacement,
) -> tuple[Block, ...]:
    """The blocks of a minibatch (Hamilton et al., 2017, Algorithm 2), one a hop, in the order layers run.

    `fanouts[0]` is the hop next to the seeds: `(25, 10)` draws 25 neighbors of each seed, then 10 of
    each of the `num_seeds * (1 + 25)` nodes sampled so far. `blocks[0]` reads the feature table by node id;
    the others are trees over the layer before; `blocks[-1]`'s destinations are the seeds. Errors, and ids out
    of range, are as with `sample_neighbors`.

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

    return stack_hops(key, as_ids(seeds, "seeds"), fanouts, hop)


def append_slots(frontier: Any, block: Any, fanout: Any = None) -> tuple[Any, Tree]:
    """The frontier followed by every slot, and the tree over its rows. For ids, and for tuples of arrays.

    >>> import jax.numpy as jnp
    >>> block = Indexed(jnp.array([0]), jnp.array([[1, 2]]), jnp.array([[True, True]]))
    >>> append_slots(block.dst, block)[0]
    Array([0, 1, 2], dtype=int32)
    """
    frontier = jax.tree.map(lambda ids, src: jnp.concatenate([ids, src.ravel()]), frontier, block.src)
    return frontier, Tree(block.mask, block.edge_data)


def stack_hops(
    key: PRNGKey, seeds: Any, fanouts: Sequence[Any], hop: HopFn, *, extend: ExtendFn = append_slots
) -> tuple[Any, ...]:
    """The blocks of a minibatch, as `sample_blocks` gives them, of hops that `hop` draws.

    Hop number `i` draws with `fold_in(key, i)`. Between two hops `extend` says what the next one starts
    from, and how the block before reads its rows. Seeds and fanouts are what `hop` and `extend` make of them.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3)
    >>> hop = lambda key, seeds, fanout: sample_neighbors(key, graph, seeds, fanout)
    >>> [block.num_dst for block in stack_hops(jax.random.key(0), jnp.array([0, 2]), (2, 3), hop)]
    [6, 2]
    """
    check_fanouts(fanouts)
    blocks, frontier = [], seeds
    for number, fanout in enumerate(fanouts):
        if number:
            frontier, blocks[0] = extend(frontier, blocks[0], fanouts[number - 1])
        blocks.insert(0, hop(jax.random.fold_in(key, number), frontier, fanout))
    return tuple(blocks)


def full_block(graph: Graph, *, slots: bool = False) -> Segments:
    """Every edge of a graph as one block: all nodes read their whole neighborhoods (on the host).

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
