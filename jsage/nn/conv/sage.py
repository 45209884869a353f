"""One GraphSAGE layer."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import Scope
from jaxtyping import Array, DTypeLike, Float

from jsage.blocks import aggregate as aggregates
from jsage.blocks.edge_view import beside_edges
from jsage.blocks.edges import edge_rows
from jsage.blocks.layout import Block
from jsage.blocks.reductions import SUM, weighted_source
from jsage.graph.sparse import is_sparse
from jsage.nn.activation import relu
from jsage.nn.dense import Dense, Dropout, Rows
from jsage.typing import AggregateFn, EdgeData, HostArray


class SAGEConv(nn.Module):
    """`h_v' = W_self h_v + W_neigh AGG({h_u}) + b` (Hamilton et al., 2017, Algorithm 1, lines 4 and 5).

    `W [h_v ; AGG]` of the paper is `W_self h_v + W_neigh AGG`, written as two matrices. With
    `aggregate.gcn`, which holds the node's own row, there is no self term unless `self_term=True`.

    Differs from PyG's `SAGEConv`: `concat`, `gcn` and dropout, which acts on the inputs of both matrices.
    Where the block reads the same few rows again and again, a narrowing `W_neigh` goes before a linear
    aggregation (the same sum in another order, with shorter rows to gather), and dropout drops a row once
    for all its readers.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> h, block = jnp.ones((3, 4)), Tree(jnp.array([[True, True]]))
    >>> SAGEConv(8).init_with_output(jax.random.key(0), h, block)[0].shape
    (1, 8)
    """

    features: int
    """Output width; with `concat` each half has it."""
    aggregate: AggregateFn = aggregates.mean
    """A function of `jsage.aggregate`, or a module such as `Pool()`; each layer has a copy of its own."""
    self_term: bool | None = None
    """Whether `W_self h_v` is there; None: unless the aggregator is `gcn`."""
    concat: bool = False
    """Concatenate `W_self h_v` and `W_neigh AGG` instead of adding them, as the 2017 code does."""
    project: bool = False
    """Transform neighbors by a dense layer and ReLU before the aggregation."""
    edge: str | None = None
    """The array of `edge_data` that goes beside each neighbor's row, `m_uv = [h_u ; e_uv]`."""
    bias: bool = True
    normalize: bool = False
    """Scale each output row to length 1 (Algorithm 1, line 7); a zero row stays zero."""
    dropout: float = 0.0
    """Rate on the inputs of the dense layers; draws from the rng stream `"dropout"`."""
    dtype: DTypeLike | None = None
    """Dtype of the computation, for instance `jnp.bfloat16`; parameters and sums are float32."""

    def __post_init__(self) -> None:
        """Copy an aggregator that several layers were given: flax would share its parameters."""
        if isinstance(self.aggregate, nn.Module) and not isinstance(self.aggregate.parent, Scope | SAGEConv):
            self.aggregate = self.aggregate.clone(name=None, _deep_clone=True, _reset_names=True)
        super().__post_init__()

    @nn.compact
    def __call__(self, h: Rows, block: Block, *, deterministic: bool = True) -> Float[Array, "num_dst d_out"]:
        """`[num_src, d]` rows at a block's sources to `[num_dst, features]` at its destinations."""
        drop: Callable[[Any], Any] = Dropout(self.dropout, deterministic=deterministic)
        if block.reads_again(h.shape[0]) or is_sparse(h):
            h, drop = drop(h), lambda rows: rows
        out = self._neighbors(h, block, drop)
        if self.aggregate is not aggregates.gcn if self.self_term is None else self.self_term:
            own = self._dense("self")(drop(block.own(h)))
            out = jnp.concatenate([own, out], -1) if self.concat else own + out
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (out.shape[1],))
            out = out + bias[None].astype(out.dtype)
        return l2_normalize(out) if self.normalize else out

    def _neighbors(self, h: Any, block: Block, drop: Callable[[Any], Any]) -> Array:
        dense = self._dense("neigh")
        if self.project:
            rows, block = block.sources(h)
            h = relu(Dense(h.shape[1], dtype=self.dtype, name="project")(rows))
        linear = self.aggregate in LINEAR
        if self.edge and not linear:
            return dense(drop(self.aggregate(*beside_edges(h, block, self.edge))))
        before = block.reads_again(h.shape[0]) and self.features < h.shape[1]
        if linear and (before or is_sparse(h)):
            rows, block = block.sources(h)
            h = dense(rows)
            out = self.aggregate(h, block)
        else:
            out = dense(drop(self.aggregate(h, block)))
        of_edges = self._dense("edge")(self._pooled_edges(h, block, self.edge)) if self.edge else None
        return out if of_edges is None else out + of_edges

    def _pooled_edges(self, h: Array, block: Block, name: str) -> Array:
        """What a linear aggregator makes of the edges' rows: `W [h ; e] = W_h h + W_e e`."""

        def message(dst: Any, src: Any, edge: EdgeData) -> Array:
            return weighted_source(dst, edge_rows(edge, name), edge)

        total, count = block.reduce(message, SUM, None, h), block.degrees()
        if self.aggregate is aggregates.sum:
            return total
        count = jnp.maximum(count, 1) if self.aggregate is aggregates.mean else 1 + count
        return total / count[:, None].astype(total.dtype)

    def _dense(self, name: str) -> Dense:
        return Dense(self.features, use_bias=False, dtype=self.dtype, name=name)


LINEAR = (aggregates.sum, aggregates.mean, aggregates.gcn)
"""Aggregators that commute with a matrix on the rows."""


def l2_normalize(rows: Float[HostArray, "rows d"]) -> Float[Array, "rows d"]:
    """Rows of length 1, however long or short they were; a zero row stays zero, with a zero gradient.

    >>> import jax.numpy as jnp
    >>> l2_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    wide = jnp.asarray(rows, jnp.float32)
    top = jax.lax.stop_gradient(jnp.max(abs(wide), axis=1, keepdims=True, initial=0.0))
    odd = (top > 0) & ((top < 1e-12) | (top > 1e15))  # squares that float32 does not have
    wide = wide / jnp.where(odd, top, 1.0)
    square = jnp.sum(jnp.square(wide), axis=1, keepdims=True)
    long = square > 0
    scale = jnp.where(long, jax.lax.rsqrt(jnp.where(long, square, 1.0)), 0.0)
    return (wide * scale).astype(rows.dtype)
