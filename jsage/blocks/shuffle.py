"""Each destination's slots in a random order, for reductions whose order counts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, UInt32

from jsage.blocks.block import Indexed, Segments, Tree
from jsage.blocks.edge_view import EdgeView
from jsage.blocks.layout import Block
from jsage.typing import PRNGKey

FEW = 64
"""Up to so many slots are put in order by comparing all pairs, more by a sort."""


def shuffle_slots(key: PRNGKey, h: PyTree, block: Block) -> tuple[PyTree, Block]:
    """The same hop with every destination's slots in an order drawn uniformly, and the rows that it reads.

    A layout without a table of slots keeps its order.

    >>> block, h = Tree(jnp.array([[True, True, False]])), jnp.array([[1.0], [2.0], [3.0], [9.0]])
    >>> shuffle_slots(jax.random.key(4), h, block)[0].ravel()
    Array([1., 3., 2., 9.], dtype=float32)
    """
    if isinstance(block, EdgeView):
        h, turned = shuffle_slots(key, h, block.block)
        return h, block._replace(block=turned)
    if isinstance(block, Segments):
        block = block.in_order()
    if not isinstance(block, Tree | Indexed):
        return h, block
    order = shuffled(jax.random.bits(key, block.mask.shape), block.mask)

    def turn(x: Array) -> Array:
        return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), 1)

    data = {name: turn(x) for name, x in block.edge_data.items()}
    if isinstance(block, Indexed):
        return h, Indexed(block.dst, turn(block.src), turn(block.mask), data)

    def rows(x: Array) -> Array:
        own, slots = x[: block.num_dst], x[block.num_dst :]
        moved = _permuted(slots.reshape(*order.shape, -1), order)
        return jnp.concatenate([own, moved.reshape(slots.shape)])

    return jax.tree.map(rows, h), Tree(turn(block.mask), data)


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
    """A permutation of each row's valid slots, every order equally likely, with the padding last.

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
