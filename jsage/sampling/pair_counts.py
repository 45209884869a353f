"""What the neighborhoods of two nodes have in common."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from jsage.blocks import Indexed


class PairCounts(NamedTuple):
    """How often the node of each slot comes in the neighborhoods of both ends of a pair; 0 in the padding."""

    one: Int[Array, "b k 2"]
    """Of the slots of the first end: how often in its own neighborhood, and in the other end's."""
    other: Int[Array, "b k_other 2"]
    """Of the slots of the second end, alike: its own neighborhood first."""


def pair_counts(one: Indexed, other: Indexed) -> PairCounts:
    """Co-occurrence of neighbors of the pairs `(one.dst[i], other.dst[i])`, by comparing all their slots.

    The neighbor co-occurrence of DyGFormer (Yu et al., 2023, section 4.1), as integers; its encoding is a
    layer's. The blocks are those of two samples of as many destinations, such as each end's latest events.
    Raises ValueError for numbers of destinations that differ.

    >>> valid = lambda ids: Indexed(jnp.zeros(1, jnp.int32), jnp.array([ids]), jnp.ones((1, len(ids)), bool))
    >>> one, other = pair_counts(valid([5, 5, 7]), valid([7, 5]))
    >>> one[0].tolist(), other[0].tolist()
    ([[2, 1], [2, 1], [1, 1]], [[1, 1], [1, 2]])
    """
    if one.num_dst != other.num_dst:
        raise ValueError(
            f"pairs have two ends each, got blocks of {one.num_dst} and {other.num_dst} destinations: sample "
            "both ends alike"
        )

    def count(slots: Indexed, read: Indexed) -> Array:
        same = (slots.src[:, :, None] == read.src[:, None]) & slots.mask[:, :, None] & read.mask[:, None]
        return same.sum(-1, dtype=jnp.int32)

    return PairCounts(
        jnp.stack([count(one, one), count(one, other)], -1),
        jnp.stack([count(other, other), count(other, one)], -1),
    )
