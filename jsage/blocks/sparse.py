"""`X W` for rows with few numbers: each row reads its words' rows of `W`, in memory of its result's size.

Rows are sorted by their number of words and walked some at a time, word by word, as far as the longest of
them goes: rows of any length are exact, and short ones cost no more than they have. Nothing has the size
`[num_rows, num_columns]`; the gradient adds what rows say to the rows of `W` that they read.
"""

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, Int

from jsage._internal.arrays import IN_BOUNDS, accumulator_dtype, aligned, start_of, take
from jsage.graph.sparse import SparseRows

CPU, OTHER = 512, 8192
"""Rows that are walked together: on a CPU what fits its caches, elsewhere what keeps it busy."""
UNROLL = 4
"""Words that are read before the sum is written."""

Words: TypeAlias = tuple[Array, Array, Array, Array | None]
"""`start`, `length`, `indices` and `dropout` of `SparseRows`."""


def sparse_product(rows: SparseRows, table: Float[Array, "num_columns d"]) -> Float[Array, "num_rows d"]:
    """`rows @ table`, summed in float32 at least: a weighted sum of rows of the table.

    Values and gradients, by the table and by the rows' values, are those of the dense product.

    >>> import numpy as np
    >>> from jsage.graph import sparse_rows
    >>> rows = jax.device_put(sparse_rows(np.array([[0.0, 2.0], [1.0, 3.0]])))
    >>> sparse_product(rows, jnp.array([[1.0], [10.0]])).ravel()
    Array([20., 31.], dtype=float32)
    """
    if table.shape[0] != rows.shape[1]:
        raise ValueError(
            f"a table for rows of {rows.shape[1]} columns must have as many rows, got shape {table.shape}"
        )
    start, length, indices, values, _, dropout = jax.tree.map(jnp.asarray, rows)
    return _product(*aligned(jnp.asarray(table), values, (start, length, indices, dropout)))


@partial(jax.custom_vjp)
def _product(table: Array, values: Array, words: Words) -> Array:
    run = [partial(_forward, rows) for rows in (CPU, OTHER)]
    return jax.lax.platform_dependent(table, values, words, cpu=run[0], default=run[1])


def _product_forward(table: Any, values: Any, words: Any) -> tuple[Array, Any]:
    given = jax.tree.map(lambda x: x.value, (table, values, words), is_leaf=lambda x: hasattr(x, "perturbed"))
    wanted = jnp.zeros(()) if values.perturbed else None
    return _product(*given), (given, wanted)


def _product_backward(saved: Any, cotangent: Any) -> tuple[Any, ...]:
    given, wanted = saved
    table, values, _ = given
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros_like(table), None, None
    run = [partial(_backward, rows, wanted is not None) for rows in (CPU, OTHER)]
    d_table, d_values = jax.lax.platform_dependent(*given, cotangent, cpu=run[0], default=run[1])
    return d_table.astype(table.dtype), None if wanted is None else d_values.astype(values.dtype), None


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


class _Chunk(NamedTuple):
    """Rows that are walked together."""

    row: Int[Array, " rows"]
    """Their positions, one beyond the last in the padding."""
    start: Int[Array, " rows"]
    length: Int[Array, " rows"]


def _chunks(rows: int, words: Words) -> _Chunk:
    """All rows by their number of words, so many at a time."""
    start, length, _, _ = words
    size = start.shape[0]
    rows = min(rows, size)
    order = jnp.argsort(length).astype(jnp.int32)
    pad = lambda x, fill: jnp.pad(x, (0, -size % rows), constant_values=fill).reshape(-1, rows)  # noqa: E731
    return _Chunk(pad(order, size), pad(take(start, order), 0), pad(take(length, order), 0))


def _word(i: Array, chunk: _Chunk, values: Array, words: Words) -> tuple[Array, Array, Array]:
    """Each row's word `i`: where it is, what multiplies its value, and its column; 0 where there is none."""
    _, _, indices, dropout = words
    valid = i < chunk.length
    at = jnp.where(valid, chunk.start + i, 0)
    scale = valid.astype(accumulator_dtype(values))
    if dropout is not None:
        counter = jnp.concatenate([at, jnp.zeros_like(at)]).astype(jnp.uint32)
        bits = threefry_2x32((dropout[0], dropout[1]), counter)[: at.shape[0]]
        share = 1 - dropout[2].astype(jnp.float32) / 2.0**32
        scale = jnp.where(bits >= dropout[2], scale / jnp.maximum(share, 2.0**-32), 0)
    return at, scale, take(indices, at)


def _forward(rows: int, table: Array, values: Array, words: Words) -> Array:
    size, width = words[0].shape[0], table.shape[1]
    zero = jnp.zeros((size, width), accumulator_dtype(table))
    if size == 0:
        return zero.astype(table.dtype)
    chunks = _chunks(rows, words)

    def one(chunk: _Chunk) -> Array:
        def word(i: Array, total: Array) -> Array:
            at, scale, column = _word(i, chunk, values, words)
            value = jnp.where(scale != 0, take(values, at), 0) * scale
            return total + value[:, None] * take(table, column)

        def some(at: tuple[Array, Array]) -> tuple[Array, Array]:
            i, total = at
            for more in range(UNROLL):
                total = word(i + more, total)
            return i + UNROLL, total

        most = chunk.length.max()
        begin = jnp.zeros_like(most), jnp.zeros((chunk.row.shape[0], width), zero.dtype)
        begin = start_of(begin, chunk, table, values)
        return jax.lax.while_loop(lambda at: at[0] < most, some, begin)[1]

    out = jax.lax.map(one, chunks).reshape(-1, width)
    place = jnp.zeros(size, jnp.int32).at[chunks.row.ravel()].set(jnp.arange(out.shape[0]), mode="drop")
    return take(out, place).astype(table.dtype)


def _backward(
    rows: int, wanted: bool, table: Array, values: Array, words: Words, cotangent: Array
) -> tuple[Array, Array]:
    d_table = jnp.zeros(table.shape, accumulator_dtype(table))
    d_values = jnp.zeros(values.shape if wanted else (0,), accumulator_dtype(values))
    start = start_of((d_table, d_values), table, values, words, cotangent)
    if words[0].shape[0] == 0:
        return start
    chunks = _chunks(rows, words)

    def one(k: Array, grads: tuple[Array, Array]) -> tuple[Array, Array]:
        chunk = jax.tree.map(lambda x: x[k], chunks)
        mine = take(cotangent, jnp.minimum(chunk.row, cotangent.shape[0] - 1)).astype(d_table.dtype)

        def word(i: Array, grads: tuple[Array, Array]) -> tuple[Array, Array]:
            d_table, d_values = grads
            at, scale, column = _word(i, chunk, values, words)
            value = jnp.where(scale != 0, take(values, at), 0) * scale
            more = jnp.where(value[:, None] != 0, value[:, None] * mine, 0)
            if wanted:
                said = (mine * take(table, column)).sum(1) * scale
                d_values = d_values.at[at].add(jnp.where(scale != 0, said, 0), **IN_BOUNDS)
            return d_table.at[column].add(more, **IN_BOUNDS), d_values

        return jax.lax.fori_loop(0, chunk.length.max(), word, grads)

    return jax.lax.fori_loop(0, chunks.row.shape[0], one, start)
