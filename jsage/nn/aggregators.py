"""Aggregators with parameters: modules called as `(h, block) -> pooled`."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, UInt32

from jsage import aggregate
from jsage.block import Block
from jsage.typing import AggregateFn, Folds


class Pool(nn.Module):
    """`AGG({act(W m_u + b)})`: a dense layer on every neighbour, then a reduction.

    Hamilton et al. (2017), equation 3, with `aggregate.max`; mean-pool with `aggregate.mean`. Edge weights
    multiply what comes out of the dense layer.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.block import Tree
    >>> h, block = jnp.ones((3, 4)), Tree(jnp.array([[True, True]]))
    >>> Pool(features=8).init_with_output(jax.random.key(0), h, block)[0].shape
    (1, 8)
    """

    features: int | None = None
    """Width of the dense layer; None keeps that of its input."""
    reduce: AggregateFn = aggregate.max
    act: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike | None = None
    """Dtype of the computation; parameters are float32."""

    @nn.compact
    def __call__(self, h: Float[Array, "num_src d"], block: Block) -> Float[Array, "num_dst features"]:
        """Pool `[num_src, d]` rows to `[num_dst, features]`."""
        rows, block = block.sources(h)
        dense = nn.Dense(self.features or h.shape[1], dtype=self.dtype, name="dense")
        return self.reduce(self.act(dense(rows)), block)


class LSTM(nn.Module):
    """The last hidden state of an LSTM over the neighbours in random order (Hamilton et al., 2017, 3.3).

    The order is drawn from the rng stream `"order"`; without it neighbours are read in the order of their
    slots, which makes inference deterministic. Padded slots leave the state as it is, exactly; without
    neighbours the result is 0.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.block import Tree
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

        def start(rows):
            return jnp.zeros((rows, width), dtype), jnp.zeros((rows, width), dtype)

        def read(cell, state, row, live):
            new, _ = cell(state, row)
            keep = lambda a, b: jnp.where(live[:, None], a, b.astype(a.dtype))  # noqa: E731
            return jax.tree.map(keep, new, state)

        if isinstance(block, Folds):
            loose, variables = (
                cell.clone(parent=None, name=None),
                {"params": self.variables["params"]["cell"]},
            )
            return block.fold(h, start, lambda *slot: loose.apply(variables, *slot, method=read))[1]
        rows, mask = block.slots(h)
        if self.has_rng("order"):
            order = shuffled(jax.random.bits(self.make_rng("order"), mask.shape), mask)
            rows = jnp.take_along_axis(rows, order[..., None], 1)
            mask = jnp.take_along_axis(mask, order, 1)
        step = lambda cell, state, slot: (read(cell, state, *slot), None)  # noqa: E731
        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False}, in_axes=1)
        (_, hidden), _ = scan(cell, start(mask.shape[0]), (rows, mask))
        return hidden


def shuffled(bits: UInt32[Array, "rows k"], mask: Bool[Array, "rows k"]) -> Int[Array, "rows k"]:
    """A permutation of each row's live slots, every order equally likely, with the padding last.

    Two slots tie once in 2^31 draws, and then keep their order.

    >>> import jax, jax.numpy as jnp
    >>> bits = jax.random.bits(jax.random.key(0), (1, 4))
    >>> shuffled(bits, jnp.array([[True, False, True, True]]))[0, 3]
    Array(1, dtype=int32)
    """
    return jnp.argsort(jnp.where(mask, bits >> 1, jnp.uint32(1 << 31)), axis=1)
