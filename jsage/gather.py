"""Sum and maximum of gathered rows without ever holding the `[rows, k, d]` array of them.

Both walk over the `k` slots and keep one `[rows, d]` accumulator, forwards and backwards; padded slots are
never read into a value or a gradient. Sums accumulate in float32 at least.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Table: TypeAlias = Float[Array, "num_src d"]
Slots: TypeAlias = Int[Array, "rows k"]
Live: TypeAlias = Bool[Array, "rows k"]
Weight: TypeAlias = Float[Array, "rows k"] | None
Pooled: TypeAlias = Float[Array, "rows d"]


def take(table: Array, ids: Int[Array, "..."]) -> Array:
    """Rows of a table at positions that are known to be legal.

    >>> import jax.numpy as jnp
    >>> take(jnp.array([10, 20, 30]), jnp.array([2, 0]))
    Array([30, 10], dtype=int32)
    """
    return table.at[ids].get(mode="promise_in_bounds")


@jax.custom_vjp
def gather_sum(table: Table, src: Slots, mask: Live, weight: Weight = None) -> Pooled:
    """`sum_i weight[r, i] * table[src[r, i]]` over the live slots of each row.

    >>> import jax.numpy as jnp
    >>> table = jnp.array([[1.0], [10.0], [100.0]])
    >>> gather_sum(table, jnp.array([[0, 2], [1, 1]]), jnp.array([[True, True], [True, False]]))
    Array([[101.], [ 10.]], dtype=float32)
    """

    def add(i, total):
        return total + jnp.where(mask[:, i, None], _message(table, src, weight, i), 0).astype(total.dtype)

    total = jnp.zeros((src.shape[0], table.shape[1]), _wide(table))
    return jax.lax.fori_loop(0, src.shape[1], add, total).astype(table.dtype)


def _sum_forward(table, src, mask, weight=None):
    return gather_sum(table, src, mask, weight), (table, src, mask, weight)


def _sum_backward(saved, cotangent):
    table, src, mask, weight = saved
    return _pull(table, src, weight, lambda i: jnp.where(mask[:, i, None], cotangent, 0))


gather_sum.defvjp(_sum_forward, _sum_backward)


@jax.custom_vjp
def gather_max(table: Table, src: Slots, mask: Live, weight: Weight = None) -> Pooled:
    """The maximum of `weight[r, i] * table[src[r, i]]` over the live slots; 0 for a row without any.

    The gradient is shared equally between ties, as that of `jnp.max` is.

    >>> import jax.numpy as jnp
    >>> table = jnp.array([[1.0], [10.0], [100.0]])
    >>> gather_max(table, jnp.array([[0, 2], [1, 1]]), jnp.array([[True, True], [False, False]]))
    Array([[100.], [  0.]], dtype=float32)
    """

    def rise(i, top):
        return jnp.maximum(top, jnp.where(mask[:, i, None], _message(table, src, weight, i), -jnp.inf))

    start = jnp.full((src.shape[0], table.shape[1]), -jnp.inf, table.dtype)
    top = jax.lax.fori_loop(0, src.shape[1], rise, start)
    return jnp.where(mask.any(1)[:, None], top, 0)


def _max_forward(table, src, mask, weight=None):
    top = gather_max(table, src, mask, weight)
    return top, (table, src, mask, weight, top)


def _max_backward(saved, cotangent):
    table, src, mask, weight, top = saved

    def won(i):
        return mask[:, i, None] & (_message(table, src, weight, i) == top)

    ties = jax.lax.fori_loop(0, src.shape[1], lambda i, n: n + won(i), jnp.zeros(top.shape, jnp.int32))
    share = cotangent / jnp.maximum(ties, 1).astype(cotangent.dtype)
    return _pull(table, src, weight, lambda i: jnp.where(won(i), share, 0))


gather_max.defvjp(_max_forward, _max_backward)


def _message(table: Table, src: Slots, weight: Weight, i: Array) -> Pooled:
    row = take(table, src[:, i])
    return row if weight is None else row * weight[:, i, None].astype(row.dtype)


def _pull(table: Table, src: Slots, weight: Weight, cotangent_of):
    """Cotangents of `(table, src, mask, weight)` from those of the messages, slot by slot."""

    def step(i, grads):
        d_table, d_weight = grads
        d_row = cotangent_of(i).astype(d_table.dtype)
        if weight is not None:
            live = jnp.where(d_row == 0, 0, take(table, src[:, i]).astype(d_row.dtype))
            d_weight = d_weight.at[:, i].set((d_row * live).sum(1).astype(weight.dtype))
            d_row = d_row * weight[:, i, None].astype(d_row.dtype)
        return d_table.at[src[:, i]].add(d_row, mode="promise_in_bounds"), d_weight

    start = jnp.zeros(table.shape, _wide(table)), None if weight is None else jnp.zeros_like(weight)
    d_table, d_weight = jax.lax.fori_loop(0, src.shape[1], step, start)
    return d_table.astype(table.dtype), None, None, d_weight


def _wide(table: Table) -> jnp.dtype:
    return jnp.promote_types(table.dtype, jnp.float32)
