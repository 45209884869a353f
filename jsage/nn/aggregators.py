"""Aggregators with parameters: modules called as `(h, block) -> pooled`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PyTree, UInt32

from jsage.blocks import Block, Indexed, Tree, aggregate, by_chunk
from jsage.nn.activation import relu
from jsage.typing import AggregateFn, Folds

FEW = 64
"""Up to so many slots are put in order by comparing all pairs, more by a sort."""


class Pool(nn.Module):
    """`AGG({act(W m_u + b)})`: a dense layer on every neighbour, then a reduction.

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

        def pool(params, h, block):
            rows, block = block.sources(h)
            made: Any = alone.apply({"params": params}, rows)
            return self.reduce(self.act(made), block)

        if isinstance(block, Indexed | Tree) and _by_slot(h, block):
            return by_chunk(pool, params, h, block)
        return pool(params, h, block)


class LSTM(nn.Module):
    """The last hidden state of an LSTM over the neighbours in random order (Hamilton et al., 2017, 3.3).

    The order is drawn from the rng stream `"order"`; without it neighbours are read in the order of their
    slots, which makes inference deterministic. Padded slots leave the state as it is, exactly; without
    neighbours the result is 0.

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

        def step(params, state, row, live):
            new, _ = alone.apply({"params": params}, state, row)
            return jax.tree.map(lambda a, b: jnp.where(live[:, None], a, b), new, state)

        def read(params, h, block):
            return _last_state(partial(step, params), empty(block.num_dst), *block.slots(h))

        if isinstance(block, Folds):
            return block.fold(h, empty, partial(step, params))[1]
        if not isinstance(block, Indexed | Tree):
            rows, mask = block.slots(h)
            own = jnp.zeros((block.num_dst, h.shape[1]), rows.dtype)  # not read
            h, block = jnp.concatenate([own, rows.reshape(-1, h.shape[1])]), Tree(mask)
        if self.has_rng("order"):
            bits = jax.random.bits(self.make_rng("order"), block.mask.shape)
            h, block = _reordered(h, block, shuffled(bits, block.mask))
        return by_chunk(read, params, h, block)


def _by_slot(h: Array, block: Indexed | Tree) -> bool:
    """Whether `block.sources(h)` holds a row for each slot, not one for each row of a smaller `h`."""
    if isinstance(block, Tree) or not isinstance(h.shape[0], int):  # a size may be a symbol (jax.export)
        return True
    return h.shape[0] > block.num_dst + block.mask.size


def _parameters(module: nn.Module, *inputs: Any) -> PyTree:
    """A submodule's parameters, made from inputs like these where there are none yet."""
    if module.is_initializing():
        module(*inputs)
    return module.variables["params"]


def _last_state(step: Callable, start: PyTree, rows: Array, mask: Array) -> Array:
    """The hidden state after all slots; `step(state, row, live)` gives the next state."""
    slots = jnp.swapaxes(rows, 0, 1), mask.T
    (_, hidden), _ = jax.lax.scan(lambda state, slot: (step(state, *slot), None), start, slots)
    return hidden


def _reordered(h: Array, block: Indexed | Tree, order: Array) -> tuple[Array, Indexed | Tree]:
    """The same hop with every destination's slots in this order."""

    def turn(x):
        return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), 1)

    data = {name: turn(x) for name, x in block.edge_data.items()}
    if isinstance(block, Indexed):
        return h, Indexed(block.dst, turn(block.src), turn(block.mask), data)
    slots = _permuted(h[block.num_dst :].reshape(*order.shape, -1), order)
    return jnp.concatenate([h[: block.num_dst], slots.reshape(-1, h.shape[1])]), Tree(turn(block.mask), data)


@jax.custom_vjp
def _permuted(rows: Array, order: Array) -> Array:
    """`rows[r, order[r]]` for permutations: the gradient reads by the inverse, where JAX would scatter."""
    return jnp.take_along_axis(rows, order[..., None], 1)


_permuted.defvjp(
    lambda rows, order: (_permuted(rows, order), order),
    lambda order, cotangent: (_permuted(cotangent, _inverse(order)), None),
)


def _inverse(order: Array) -> Array:
    """The inverse of each row's permutation, by comparing: no sort, no scatter."""
    if order.shape[1] > FEW:
        return jnp.argsort(order, axis=1)
    to, slot = _pairs(order.shape[1])
    return jnp.where(order[:, None, :] == to, slot, 0).sum(2, dtype=jnp.int32)


def _pairs(k: int) -> tuple[Array, Array]:
    """`i` and `j` of `[1, k, k]`."""
    slot = jnp.arange(k)
    return jnp.broadcast_to(slot[None, :, None], (1, k, k)), jnp.broadcast_to(slot[None, None], (1, k, k))


def shuffled(bits: UInt32[Array, "rows k"], mask: Bool[Array, "rows k"]) -> Int[Array, "rows k"]:
    """A permutation of each row's live slots, every order equally likely, with the padding last.

    Two slots tie once in 2^31 draws, and then keep their order.

    >>> import jax, jax.numpy as jnp
    >>> bits = jax.random.bits(jax.random.key(0), (1, 4))
    >>> shuffled(bits, jnp.array([[True, False, True, True]]))[0, 3]
    Array(1, dtype=int32)
    """
    drawn = jnp.where(mask, bits >> 1, jnp.uint32(1 << 31))
    if drawn.shape[1] > FEW:
        return jnp.argsort(drawn, axis=1)
    one, other = drawn[:, :, None], drawn[:, None, :]
    slot, before = _pairs(drawn.shape[1])
    rank = ((other < one) | ((other == one) & (before < slot))).sum(2, dtype=jnp.int32)
    return _inverse(rank)
