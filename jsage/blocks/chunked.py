"""Few destinations at a time: what needs a copy of every neighbour's row never holds all of them at once."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jsage._internal.arrays import LEGAL, take, wide
from jsage.blocks.block import Indexed, Tree, as_tree

ChunkFn: TypeAlias = Callable[[PyTree, Float[Array, "num_src d"], Any], Float[Array, "num_dst d_out"]]
"""`(params, h, block) -> pooled`; it closes over no array, and destinations do not see one another."""

LIMIT = 2**20
"""How many numbers of neighbours' rows are held at once: 4 MB in float32."""


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
    chunks = min(-(-numbers // LIMIT), block.num_dst)
    return _by_chunk(fn, -(-block.num_dst // chunks), params, h, block)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_chunk(fn, size, params, h, block):
    out = jax.eval_shape(lambda: fn(params, *_read(h, block, size, 0)))

    def step(i, done):
        at = _start(i, size, block)
        return jax.lax.dynamic_update_slice_in_dim(done, fn(params, *_read(h, block, size, at)), at, 0)

    return jax.lax.fori_loop(
        0, _chunks(size, block), step, jnp.zeros((block.num_dst, *out.shape[1:]), out.dtype)
    )


def _forward(fn, size, params, h, block):
    return _by_chunk(fn, size, params, h, block), (params, h, block)


def _backward(fn, size, saved, cotangent):
    params, h, block = saved

    def step(i, grads):
        d_params, d_h, d_data = grads
        at = _start(i, size, block)
        rows, tree = _read(h, block, size, at)
        trained, fixed = _floats(tree.edge_data)

        def run(params, rows, trained):
            return fn(params, rows, tree._replace(edge_data={**fixed, **trained}))

        new = at + jnp.arange(size) >= i * size  # the last chunk begins early and meets some once more
        d_out = jnp.where(new[:, None], _cut(cotangent, size, at), 0)
        more, d_rows, d_part = jax.vjp(run, params, rows, trained)[1](d_out)
        d_params = jax.tree.map(lambda a, b: a + b.astype(a.dtype), d_params, more)
        d_data = {name: _add(d_data[name], at, d) for name, d in d_part.items()}
        return d_params, _unread(d_h, block, at, d_rows.astype(d_h.dtype)), d_data

    trained = _floats(block.edge_data)[0]
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x)), (params, h, trained))
    grads = jax.lax.fori_loop(0, _chunks(size, block), step, start)
    d_params, d_h, d_data = jax.tree.map(lambda x, d: d.astype(x.dtype), (params, h, trained), grads)
    data = {name: d_data.get(name) for name in block.edge_data}
    return d_params, d_h, jax.tree.map(lambda _: None, block)._replace(edge_data=data)


_by_chunk.defvjp(_forward, _backward)


def _chunks(size: int, block: Indexed | Tree) -> int:
    return -(-block.num_dst // size)


def _start(i: Array, size: int, block: Indexed | Tree) -> Array:
    return jnp.minimum(i * size, block.num_dst - size)


def _read(h: Array, block: Indexed | Tree, size: int, at: Any) -> tuple[Array, Tree]:
    """The rows that `size` destinations read, and the tree over them."""
    part = jax.tree.map(lambda x: _cut(x, size, at), block)
    fanout = block.mask.shape[1]
    if isinstance(part, Tree):
        slots = _cut(h, size * fanout, block.num_dst + at * fanout)
        return jnp.concatenate([_cut(h, size, at), slots]), part
    ids, tree = as_tree(part)
    # Times 1: a matmul in bfloat16 behind a mere copy would have XLA convert the whole table beforehand.
    live = tree.read(jnp.ones(size, bool), ids.size)
    return take(h, ids) * live[:, None].astype(h.dtype), tree


def _unread(d_h: Array, block: Indexed | Tree, at: Any, d_rows: Array) -> Array:
    """Add cotangents of the rows of `_read` to those of `h`."""
    fanout = block.mask.shape[1]
    size = d_rows.shape[0] // (1 + fanout)
    if isinstance(block, Tree):
        return _add(_add(d_h, at, d_rows[:size]), block.num_dst + at * fanout, d_rows[size:])
    ids, _ = as_tree(jax.tree.map(lambda x: _cut(x, size, at), block))
    return d_h.at[ids].add(d_rows, **LEGAL)


def _cut(x: Array, size: int, at: Any) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, at, size)


def _add(x: Array, at: Any, rows: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, _cut(x, rows.shape[0], at) + rows.astype(x.dtype), at, 0)


def _floats(data: Any) -> tuple[dict[str, Array], dict[str, Array]]:
    """The arrays that have a gradient, and the others."""
    trained = {name: x for name, x in data.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return trained, {name: x for name, x in data.items() if name not in trained}
