"""One number, or row, for each edge of a block: arrays beside its `edge_data`, and attention weights."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jsage._internal.arrays import take
from jsage._internal.checks import is_floating
from jsage.blocks.block import Indexed, Segments, Tree, as_segments
from jsage.blocks.full import SlicedBlock
from jsage.blocks.layout import Block, EdgeNames
from jsage.blocks.own_rows import OwnRows
from jsage.blocks.reductions import SOFTMAX_SUM, SUM, filled, scattered, where
from jsage.typing import EdgeData, MessageFn


class Attention(NamedTuple):
    """How much each destination reads of each edge, and of itself: 0 in the padding, 1 in sum."""

    slots: Float[Array, "*slots heads"]
    """In the order of the block's slots `[num_dst, fanout]`, or of a list's edges."""
    own: Float[Array, "num_dst heads"] | None
    """Of the destination's own row; None: it is not among what is read."""
    mask: Bool[Array, "*slots"]
    """Which of `slots` are edges."""


def edge_shape(block: Block) -> tuple[int, ...]:
    """The axes in front of a block's `edge_data`: `[num_dst, fanout]` slots, or a list of edges.

    >>> edge_shape(Tree(jnp.ones((2, 3), bool)))
    (2, 3)
    """
    if isinstance(block, OwnRows):
        return edge_shape(block.block)
    if isinstance(block, Tree | Indexed):
        return block.mask.shape
    if isinstance(block, Segments):
        return block.dst.shape
    if isinstance(block, SlicedBlock) and block.edge_data and block.forward.edge is not None:
        return next(iter(block.edge_data.values())).shape[:1]
    raise TypeError(
        f"a {type(block).__name__} has no row for each edge, as attention weights and their dropout need: "
        "use full_block(graph), or a sampled block"
    )


def edge_width(block: Block, name: str) -> int:
    """How many numbers an array of `edge_data` has for each edge.

    >>> edge_width(Tree(jnp.array([[True, True]]), {"age": jnp.array([[3, 5]])}), "age")
    1
    """
    if name not in block.edge_data:
        raise ValueError(_missing(name, block.edge_data))
    if isinstance(block.edge_data, EdgeNames):
        return block.edge_data.widths[name]
    return math.prod(block.edge_data[name].shape[len(edge_shape(block)) :])


def _missing(name: str, edge_data: EdgeData) -> str:
    return (
        f"this layer reads edge_data[{name!r}], and the block has {sorted(edge_data) or 'none'}: give the "
        f"graph that array, from_edges(src, dst, num_nodes, {name}=...), and new nodes too"
    )


def with_edge_data(block: Any, edge_data: EdgeData) -> Any:
    """The block with more arrays beside its edges, in `edge_shape`'s order, for its messages to read.

    >>> block = with_edge_data(Tree(jnp.array([[True, True]])), {"age": jnp.array([[3, 5]])})
    >>> block.reduce(lambda dst, src, edge: edge["age"], SUM, None, jnp.ones(3))
    Array([8], dtype=int32)
    """
    if isinstance(block, OwnRows):
        return block._replace(block=with_edge_data(block.block, edge_data))
    return block._replace(edge_data={**block.edge_data, **edge_data})


def attention_weights(
    message: MessageFn, block: Block, dst: PyTree, src: PyTree, own: tuple[Array, Array] | None = None
) -> Attention:
    """The softmax over each destination's logits: the weights that `SOFTMAX_SUM` gives to values.

    Takes what `block.reduce(message, SOFTMAX_SUM, dst, src, own)` takes, on layouts with a row an edge.

    >>> alike = lambda dst, src, edge: (jnp.zeros((dst.shape[0], 1)), src[:, None])
    >>> block = Tree(jnp.array([[True, True, False]]))
    >>> attention_weights(alike, block, jnp.ones((1, 1)), jnp.ones((4, 1))).slots.ravel()
    Array([0.5, 0.5, 0. ], dtype=float32)
    """
    if isinstance(block, OwnRows):
        return attention_weights(message, block.block, dst, src, own)
    shape = edge_shape(block)
    if isinstance(block, SlicedBlock):
        raise TypeError("a SlicedBlock keeps no row an edge, so no attention weights: use full_block(graph)")
    sampled: Any = block
    edges = block if isinstance(block, Segments) else as_segments(sampled)
    num_dst, mask = edges.num_dst, edges.dst < edges.num_dst
    at = jnp.minimum(edges.dst, num_dst - 1)
    rows = jax.tree.map(lambda x: take(x, at), dst), jax.tree.map(lambda x: take(x, edges.src), src)
    logit = message(*filled(mask, (*rows, dict(edges.edge_data))))[0]
    slots, mine = _softmax(logit, edges.dst, num_dst, None if own is None else own[0])
    return Attention(slots.reshape(*shape, *slots.shape[1:]), mine, mask.reshape(shape))


def _softmax(logit: Array, dst: Array, num_dst: int, own: Array | None) -> tuple[Array, Array | None]:
    """Each logit's share, by the state in which `SOFTMAX_SUM` has read all, with values of width 0."""
    empty = lambda logit: (logit, jnp.zeros((*logit.shape, 0)))  # noqa: E731
    state = scattered(SOFTMAX_SUM, SOFTMAX_SUM.start(empty(logit), num_dst), empty(logit), dst)
    state = state if own is None else SOFTMAX_SUM.step(state, empty(own), None)
    at = jnp.minimum(dst, num_dst - 1)
    share = lambda logit, top, scale: jnp.exp(logit.astype(top.dtype) - top) / scale  # noqa: E731
    slots = share(logit, take(state.top, at), take(state.scale, at))
    slots = where(dst < num_dst, slots, 0)
    return slots, None if own is None else share(own, state.top, state.scale)


def edge_mean(block: Block, name: str, h: PyTree) -> Array:
    """The mean of an array of `edge_data` over each destination's edges, 0 without any; `h`: rows of sources.

    >>> block = Tree(jnp.array([[True, True]]), {"age": jnp.array([[3.0, 5.0]])})
    >>> edge_mean(block, "age", jnp.ones((3, 1))).ravel()
    Array([4.], dtype=float32)
    """

    def message(dst: Any, src: Any, edge: EdgeData) -> Array:
        return edge_rows(edge, name)

    total = block.reduce(message, SUM, None, h)
    return total / jnp.maximum(block.degrees(), 1)[:, None].astype(total.dtype)


def edge_rows(edge: EdgeData, name: str) -> Float[Array, "rows d"]:
    """An array of `edge_data` as rows of floats.

    >>> edge_rows({"age": jnp.array([3, 5])}, "age").shape
    (2, 1)
    """
    if name not in edge:
        raise ValueError(_missing(name, edge))
    rows = edge[name] if edge[name].ndim > 1 else edge[name][:, None]
    rows = rows.reshape(rows.shape[0], -1)
    return rows if is_floating(rows.dtype) else rows.astype(jnp.float32)
