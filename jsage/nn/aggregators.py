"""Aggregators with parameters: modules called as `(h, block) -> pooled`."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from jsage.blocks import aggregate, by_chunk
from jsage.blocks.edge_view import EdgeView
from jsage.blocks.layout import Block
from jsage.blocks.reductions import SOFTMAX_SUM, Reduction, weighted_source, where
from jsage.blocks.shuffle import shuffle_slots
from jsage.graph.sparse import is_sparse
from jsage.nn.activation import relu
from jsage.nn.alone import alone
from jsage.nn.dense import Dense, Rows
from jsage.typing import AggregateFn, EdgeData


class Pool(nn.Module):
    """`AGG({act(W m_u + b)})`: a dense layer on every neighbor, then a reduction.

    Hamilton et al. (2017), equation 3, with `aggregate.max`; mean-pool with `aggregate.mean`. Edge weights
    multiply what comes out of the dense layer.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> h, block = jnp.ones((3, 4)), Tree(jnp.array([[True, True]]))
    >>> Pool(features=8).init_with_output(jax.random.key(0), h, block)[0].shape
    (1, 8)
    """

    features: int | None = None
    """Width of the dense layer; None keeps that of its input."""
    reduce: AggregateFn = aggregate.max
    act: Callable[[Array], Array] = relu
    dtype: DTypeLike | None = None
    """Dtype of the computation; parameters are float32."""

    @nn.compact
    def __call__(self, h: Rows, block: Block) -> Float[Array, "num_dst features"]:
        """Pool `[num_src, d]` rows to `[num_dst, features]`."""
        dense = Dense(self.features or h.shape[1], dtype=self.dtype, name="dense")
        made = alone(dense, jnp.zeros((1, h.shape[1]), h.dtype))

        def pool(_, h, block):
            rows, block = block.sources(h)
            return self.reduce(self.act(made(rows)), block)

        if isinstance(block, EdgeView):  # what edges bring goes through the dense layer too
            return self.reduce(h, block.then(lambda rows: self.act(made(rows))))
        if block.by_slot(h.shape[0]) and not is_sparse(h):
            return by_chunk(pool, None, h, block)
        return pool(None, h, block)


class LSTM(nn.Module):
    """The last hidden state of an LSTM over the neighbors in random order (Hamilton et al., 2017, 3.3).

    The order is drawn from the rng stream `"order"`; without it neighbors are read in the order of their
    slots, which makes inference deterministic. Padded slots leave the state as it is, exactly; without
    neighbors the result is 0.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> h, block = jnp.ones((3, 4)), Tree(jnp.array([[True, True]]))
    >>> LSTM(features=8).init_with_output(jax.random.key(0), h, block)[0].shape
    (1, 8)
    """

    features: int | None = None
    """Width of the state; None takes that of the input."""
    dtype: DTypeLike | None = None
    """Dtype of the computation; parameters are float32."""

    @nn.compact
    def __call__(self, h: Rows, block: Block) -> Float[Array, "num_dst features"]:
        """Pool `[num_src, d]` rows to `[num_dst, features]`."""
        width, dtype = self.features or h.shape[1], self.dtype or jnp.promote_types(h.dtype, jnp.float32)
        cell = nn.OptimizedLSTMCell(width, dtype=self.dtype, name="cell")
        empty = lambda rows: (jnp.zeros((rows, width), dtype),) * 2  # noqa: E731
        read_row = alone(cell, empty(1), h[:1])

        def step(state: Any, row: Array, mask: Array | None) -> Any:
            new, _ = read_row(state, row)
            return where(mask, new, state)

        read = Reduction(lambda row, num_dst: empty(num_dst), step, lambda state, degree, row: state[1])
        if self.has_rng("order"):
            h, block = shuffle_slots(self.make_rng("order"), h, block)
        return block.reduce(weighted_source, read, None, h)


class Softmax(nn.Module):
    """`sum_u softmax_u(t m_u) m_u`, column by column: a mean for `t = 0`, the maximum for large `t`.

    Li et al. (2020, "DeeperGCN"), equation 4. `t` is learned unless `learn=False`.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> h, block = jnp.array([[9.0], [1.0], [3.0]]), Tree(jnp.array([[True, True]]))
    >>> Softmax(t=0.0).init_with_output(jax.random.key(0), h, block)[0].ravel()
    Array([2.], dtype=float32)
    """

    t: float = 1.0
    """The temperature's inverse, where learning starts."""
    learn: bool = True

    @nn.compact
    def __call__(self, h: Rows, block: Block) -> Float[Array, "num_dst d"]:
        """Pool `[num_src, d]` rows to `[num_dst, d]`."""
        t = self.param("t", nn.initializers.constant(self.t), ()) if self.learn else self.t

        def message(dst: Any, src: Array, edge: EdgeData) -> tuple[Array, Array]:
            row = weighted_source(dst, src, edge)
            return row.astype(jnp.promote_types(row.dtype, jnp.float32)) * t, row

        return block.reduce(message, SOFTMAX_SUM, None, h)


class Several(nn.Module):
    """Several aggregators side by side, as principal neighborhood aggregation does (Corso et al., 2020).

    >>> import jax, jax.numpy as jnp
    >>> from jsage.blocks import Tree, aggregate
    >>> h, block = jnp.array([[9.0], [1.0], [3.0]]), Tree(jnp.array([[True, True]]))
    >>> several = Several((aggregate.mean, aggregate.max, aggregate.std))
    >>> several.init_with_output(jax.random.key(0), h, block)[0]
    Array([[2., 3., 1.]], dtype=float32)
    """

    aggregates: Sequence[AggregateFn]
    """Functions of `jsage.aggregate`, or modules such as `Pool()`."""

    @nn.compact
    def __call__(self, h: Rows, block: Block) -> Float[Array, "num_dst d_all"]:
        """Pool `[num_src, d]` rows to `[num_dst, d]` by each, in their order."""
        return jnp.concatenate([aggregate(h, block) for aggregate in self.aggregates], axis=1)
