"""What convolutions with attention share: heads, where rows are made, dropout, weights."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PyTree

from jsage.blocks.edges import (
    Attention,
    attention_weights,
    edge_mean,
    edge_shape,
    with_edge_data,
)
from jsage.blocks.layout import Block
from jsage.blocks.reductions import SOFTMAX_SUM, column
from jsage.graph.sparse import is_sparse
from jsage.nn.alone import alone, alone_on_edges
from jsage.nn.dense import Dense, Dropout, Rows
from jsage.typing import EdgeData, HostArray, MessageFn

KEEP = "attention dropout"
"""The name in `edge_data` of what dropout multiplies attention weights by."""

MadeRows: TypeAlias = Callable[[Any], Any]
"""Rows to what is made of each of them, by parameters alone."""


class AttentionConv(nn.Module):
    """The base of convolutions that weigh neighbors by a softmax: their options and common steps."""

    features: int
    """Output width, all heads together: a multiple of `heads` where those are concatenated."""
    heads: int = 1
    concat: bool = True
    """Concatenate the heads; False: average them, each of the output's width."""
    edge: str | None = None
    """The array of `edge_data` that holds the edges' features."""
    bias: bool = True
    dropout: float = 0.0
    """Rate on the layer's inputs; draws from the rng stream `"dropout"`."""
    attention_dropout: float = 0.0
    """Rate on the attention weights, from the same stream."""
    dtype: DTypeLike | None = None
    """Dtype of the computation, for instance `jnp.bfloat16`; parameters, logits and sums are float32."""

    def head_width(self) -> int:
        """The width of one head."""
        if self.heads < 1 or (self.concat and self.features % self.heads):
            raise ValueError(
                f"features must be a multiple of heads, got features={self.features}, heads={self.heads}, "
                "or pass concat=False, which averages heads (for GraphSAGE's last layer alone: last_conv=...)"
            )
        return self.features // self.heads if self.concat else self.features

    def by_head(self, name: str, width: int, bias: bool = True) -> MadeRows:
        """A dense layer of this name as a function: `[rows, width]` to `[rows, heads * head_width]`."""
        return alone(self._dense(name, bias), jnp.zeros((1, width)))

    def split(self, rows: Float[Array, "rows d"]) -> Float[Array, "rows heads width"]:
        """Rows as one part a head."""
        return rows.reshape(rows.shape[0], self.heads, -1)

    def of_edges(self, block: Block) -> MadeRows:
        """What an edge's features add, as a function of its `edge_data`; None where there are none."""
        if self.edge is None:
            return lambda edge: None
        return alone_on_edges(self._dense("edge", bias=False), block, self.edge)

    def of_own(self, of_edge: MadeRows, block: Block, h: PyTree) -> Array | None:
        """What the own slot's features add, which are the mean of the node's edges'."""
        return None if self.edge is None else of_edge({self.edge: edge_mean(block, self.edge, h)})

    def shifted(self, out: Float[Array, "rows d"], residual: Any) -> Float[Array, "rows d"]:
        """`out` and a dense layer of these rows, where they are given, and the bias."""
        if residual is not None:
            dense = Dense(self.features, use_bias=False, dtype=self.dtype, name="residual")
            out = out + dense(residual)
        if self.bias:
            out = out + self.param("bias", nn.initializers.zeros, (self.features,))[None].astype(out.dtype)
        return out

    def joined(self, out: Float[Array, "rows heads width"]) -> Float[Array, "rows features"]:
        """All heads side by side, or their mean."""
        return out.reshape(out.shape[0], -1) if self.concat else out.mean(1)

    def attend(
        self,
        message: MessageFn,
        block: Any,
        rows: tuple[PyTree, PyTree],
        own: tuple[Array, Array] | None,
        deterministic: bool,
    ) -> Float[Array, "num_dst heads width"]:
        """`block.reduce(message, SOFTMAX_SUM, *rows, own)`, with dropout on the weights."""
        dst, src = rows
        if self.is_mutable_collection("attention") and not self.is_initializing():
            self.sow("attention", "weights", attention_weights(message, block, dst, src, own))
        if self.attention_dropout and not deterministic:
            keys = jax.random.split(self.make_rng("dropout"))
            message, block = self._dropped(message, block, keys[0])
            if own is not None:
                own = own[0], _times(own[1], self._kept(keys[1], own[0].shape))
        return block.reduce(message, SOFTMAX_SUM, dst, src, own)

    def _dense(self, name: str, bias: bool) -> Dense:
        return Dense(self.heads * self.head_width(), use_bias=bias, dtype=self.dtype, name=name)

    def _dropped(self, message: MessageFn, block: Any, key: Array) -> tuple[MessageFn, Any]:
        """The message whose values are dropped or scaled, and the block that says which."""

        def dropped(dst: PyTree, src: PyTree, edge: EdgeData) -> tuple[Array, Array]:
            edge = dict(edge)
            kept = edge.pop(KEEP)
            logit, value = message(dst, src, edge)
            return logit, _times(value, kept)

        kept = self._kept(key, (*edge_shape(block), self.heads))
        return dropped, with_edge_data(block, {KEEP: kept})

    def _kept(self, key: Array, shape: tuple[int, ...]) -> Array:
        rate = 1 - self.attention_dropout
        return jax.random.bernoulli(key, rate, shape).astype(jnp.float32) / max(rate, 1e-6)


def _times(value: Array, scale: Array) -> Array:
    return value * column(scale, value).astype(value.dtype)


def head_sums(rows: Float[HostArray, "rows d"], weights: Float[HostArray, "heads width"]) -> Array:
    """`sum_c weights[k, c] rows[:, k, c]` in float32, `[rows, heads]`: a product with a matrix of blocks.

    >>> head_sums(jnp.array([[1.0, 2.0, 3.0, 4.0]]), jnp.ones((2, 2)))
    Array([[3., 7.]], dtype=float32)
    """
    heads, width = weights.shape
    blocks = jnp.eye(heads)[:, None] * jnp.asarray(weights, jnp.float32)[:, :, None]
    blocks = blocks.reshape(heads * width, heads)
    return jnp.dot(jnp.asarray(rows, jnp.float32), blocks, precision=jax.lax.Precision.HIGHEST)


def drop_inputs(rate: float, deterministic: bool, h: Rows, block: Block) -> tuple[Rows, Block]:
    """Dropout on the rows that a block reads; of a table that is larger than those, on a copy of them.

    >>> from jsage.blocks import Tree
    >>> drop_inputs(0.5, True, jnp.ones((2, 1)), Tree(jnp.array([[True]])))[0].ravel()
    Array([1., 1.], dtype=float32)
    """
    if not rate or deterministic:
        return h, block
    rows, block = block.sources(h)
    return Dropout(rate, deterministic=False)(rows), block


def made_rows(make: MadeRows, h: Rows, block: Block) -> tuple[PyTree, MadeRows, Block]:
    """What sources send, what a message makes of it, and the block that reads it.

    Rows are made once for all who read them; where that would be one for every slot, by the message instead,
    so that nothing of the size of all slots is kept; but never of sparse rows, whose words are many reads.

    >>> from jsage.blocks import edge_list
    >>> block = edge_list(jnp.array([0, 1]), jnp.array([1, 0]), num_dst=2)
    >>> made_rows(lambda rows: 2 * rows, jnp.ones((2, 1)), block)[0].ravel()
    Array([2., 2.], dtype=float32)
    """
    if block.by_slot(h.shape[0]) and not is_sparse(h):
        return h, make, block
    rows, block = block.sources(h)
    return make(rows), lambda sent: sent, block


def attention_of(model: nn.Module, params: PyTree, *inputs: Any) -> list[Attention]:
    """The attention weights in `model.apply(params, *inputs)`, one for each layer, first layer first.

    `inputs` are the features and the blocks, or a layer's rows and its block: sampled blocks, or
    `full_block(graph)`. Layers without attention have none.

    >>> from jsage.blocks import Tree
    >>> from jsage.nn import GATConv
    >>> h, block, layer = jnp.ones((3, 4)), Tree(jnp.array([[True, True]])), GATConv(8, heads=2)
    >>> [weights] = attention_of(layer, layer.init(jax.random.key(0), h, block), h, block)
    >>> weights.slots.shape, weights.own.shape
    ((1, 2, 2), (1, 2))
    """
    _, found = model.apply(params, *inputs, mutable=["attention"])
    leaves = jax.tree.leaves_with_path(found, is_leaf=lambda x: isinstance(x, Attention))
    return [weights for _, weights in sorted(leaves, key=lambda leaf: _in_order(leaf[0]))]


def _in_order(path: tuple[Any, ...]) -> list[Any]:
    """A key that puts layer 10 after layer 2."""
    names = re.findall(r"[0-9]+|[^0-9]+", jax.tree_util.keystr(path))
    return [(1, int(name), "") if name.isdigit() else (0, 0, name) for name in names]
