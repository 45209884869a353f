"""Aggregators with parameters: modules called as `(h, block) -> pooled`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PyTree

from jsage.blocks import aggregate, by_chunk
from jsage.blocks.layout import Block
from jsage.blocks.reductions import Reduction, weighted_source, where
from jsage.blocks.shuffle import shuffle_slots
from jsage.nn.activation import relu
from jsage.typing import AggregateFn


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
    def __call__(self, h: Float[Array, "num_src d"], block: Block) -> Float[Array, "num_dst features"]:
        """Pool `[num_src, d]` rows to `[num_dst, features]`."""
        dense = nn.Dense(self.features or h.shape[1], dtype=self.dtype, name="dense")
        params, alone = _parameters(dense, h[:1]), dense.clone(parent=None, name=None)

        def pool(_, h, block):
            rows, block = block.sources(h)
            made: Any = alone.apply({"params": params}, rows)
            return self.reduce(self.act(made), block)

        if block.by_slot(h.shape[0]):
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
    def __call__(self, h: Float[Array, "num_src d"], block: Block) -> Float[Array, "num_dst features"]:
        """Pool `[num_src, d]` rows to `[num_dst, features]`."""
        width, dtype = self.features or h.shape[1], self.dtype or jnp.promote_types(h.dtype, jnp.float32)
        cell = nn.OptimizedLSTMCell(width, dtype=self.dtype, name="cell")
        empty = lambda rows: (jnp.zeros((rows, width), dtype),) * 2  # noqa: E731
        params, alone = _parameters(cell, empty(1), h[:1]), cell.clone(parent=None, name=None)

        def step(state: Any, row: Array, mask: Array | None) -> Any:
            new, _ = alone.apply({"params": params}, state, row)
            return where(mask, new, state)

        read = Reduction(lambda row, num_dst: empty(num_dst), step, lambda state, degree, row: state[1])
        if self.has_rng("order"):
            h, block = shuffle_slots(self.make_rng("order"), h, block)
        return block.reduce(weighted_source, read, None, h)


def _parameters(module: nn.Module, *inputs: Any) -> PyTree:
    """A submodule's parameters, made from inputs like these where there are none yet."""
    if module.is_initializing():
        module(*inputs)
    return module.variables["params"]
