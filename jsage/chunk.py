"""Few destinations at a time: what needs a copy of every neighbour's row never holds all of them at once."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jsage.block import Indexed, Tree, as_tree
from jsage.gather import take, wide

ChunkFn: TypeAlias = Callable[[PyTree, Float[Array, "num_src d"], Any], Float[Array, "num_dst d_out"]]
"""`(params, h, block) -> pooled`; it closes over no array, and destinations do not see one another."""

LIMIT = 2**22
"""How many numbers of copied rows are held at once: 16 MB in float32."""


def by_chunk(
    fn: ChunkFn, params: PyTree, h: Float[Array, "num_src d"], block: Indexed | Tree
) -> Float[Array, "num_dst d_out"]:
    """`fn(params, h, block)`, a chunk of destinations at a time where the block reads more than `LIMIT`.

    Each chunk is a `Tree` over the rows that it reads, copied where the block is indexed; its gradient
    computes it again, so what `fn` makes of the rows takes the same memory for any number of destinations.

    >>> import jax.numpy as jnp
    >>> block = Indexed(jnp.array([0]), jnp.array([[1, 2]]), jnp.array([[True, True]]))
    >>> by_chunk(lambda scale, h, block: scale * block.sum(h), 2.0, jnp.array([[1.0], [2.0], [4.0]]), block)
    Array([[12.]], dtype=float32)
    """
    numbers = (block.num_dst + block.mask.size) * h.shape[1]
    if not isinstance(numbers, int) or numbers <= LIMIT:  # a size may be a symbol (jax.export)
        return fn(params, h, block)
    run = _on_tree if isinstance(block, Tree) else _by_chunk
    return run(fn, -(-numbers // LIMIT), params, h, block)


def _on_tree(fn, count, params, h, block):
    @jax.checkpoint
    def run(part):
        chunk, own, slots = part
        return fn(params, jnp.concatenate([own, slots.reshape(-1, h.shape[1])]), chunk)

    slots = h[block.num_dst :].reshape(*block.mask.shape, h.shape[1])
    parts = _split((block, h[: block.num_dst], slots), count, "edge")
    return _join(jax.lax.map(run, parts), block.num_dst)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_chunk(fn, count, params, h, block):
    def run(chunk):
        ids, tree = as_tree(chunk)
        return fn(params, _copied(h, ids), tree)

    return _join(jax.lax.map(run, _split(block, count, "edge")), block.num_dst)


def _forward(fn, count, params, h, block):
    return _by_chunk(fn, count, params, h, block), (params, h, block)


def _backward(fn, count, saved, cotangent):
    params, h, block = saved

    def step(grads, part):
        (d_params, d_h), (chunk, d_out) = grads, part
        ids, tree = as_tree(chunk)
        trained, fixed = _floats(tree.edge_data)

        def run(params, rows, trained):
            return fn(params, rows, tree._replace(edge_data={**fixed, **trained}))

        more, d_rows, d_data = jax.vjp(run, params, _copied(h, ids), trained)[1](d_out)
        d_h = d_h.at[ids].add(d_rows.astype(d_h.dtype), mode="promise_in_bounds")
        return (jax.tree.map(lambda a, b: a + b.astype(a.dtype), d_params, more), d_h), d_data

    start = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x)), (params, h))
    parts = _split(block, count, "edge"), _split(cotangent, count, "constant")
    (d_params, d_h), d_data = jax.lax.scan(step, start, parts)
    d_data = {name: _join(d, block.num_dst) for name, d in d_data.items()}
    d_block = Indexed(None, None, None, {name: d_data.get(name) for name in block.edge_data})
    return jax.tree.map(lambda x, d: d.astype(x.dtype), params, d_params), d_h.astype(h.dtype), d_block


_by_chunk.defvjp(_forward, _backward)


def _copied(h: Array, ids: Array) -> Array:
    """The rows, as they are: a matmul in bfloat16 behind them would have XLA convert the whole table first."""
    return jax.lax.optimization_barrier(take(h, ids))


def _split(arrays: PyTree, count: int, padding: str) -> PyTree:
    """`[n, ...]` to `[count, n / count, ...]`; `"edge"` repeats the last row, `"constant"` is 0."""

    def cut(x):
        missing = -x.shape[0] % count
        padded = jnp.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)], mode=padding)
        return padded.reshape(count, -1, *x.shape[1:])

    return jax.tree.map(cut, arrays)


def _join(chunks: Array, rows: int) -> Array:
    return chunks.reshape(-1, *chunks.shape[2:])[:rows]


def _floats(data: Any) -> tuple[dict[str, Array], dict[str, Array]]:
    """The arrays that have a gradient, and the others."""
    trained = {name: x for name, x in data.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return trained, {name: x for name, x in data.items() if name not in trained}
