"""Neighbors that seeds agree on: fewer distinct nodes for as many neighbors each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer, UInt32

from jsage._internal.checks import check_fanout
from jsage.graph.adjacency import Adjacency
from jsage.sampling.by_node import threefry_key
from jsage.sampling.draws import choose
from jsage.typing import PRNGKey

_LAST = np.uint32(2**32 - 1)
_LABOR = 0x6C61626F
"""A fold that no other use of a key has: "labo"."""


def node_numbers(words: UInt32[Array, " 2"], ids: Integer[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A random number of each id, no two alike: two words of a key, and the finalizers of two hashes.

    MurmurHash3's (Appleby, 2011) and lowbias32 (Wellons, 2018), each after a word of its own, at a tenth of
    the cost of a cipher. Over keys each order of ids by their numbers is as likely as any other, as far as
    the tests tell.

    >>> import jax, jax.numpy as jnp
    >>> node_numbers(jax.random.bits(jax.random.key(0), (2,)), jnp.arange(2)).tolist()
    [3481555569, 3831548601]
    """
    number = ids.astype(jnp.uint32) ^ words[0]
    number = _mixed(number, 0x85EBCA6B, 0xC2B2AE35, (16, 13, 16)) + words[1]
    return _mixed(number, 0x7FEB352D, 0x846CA68B, (16, 15, 16))


class Labor(NamedTuple):
    """A draw without replacement in which seeds prefer the same neighbors: LABOR-0, in a fixed shape.

    Each node has one random number a hop, and a seed takes the `k` edges whose sources have the smallest
    (Balin and Çatalyürek, 2023, "Layer-neighbor sampling"; their sequential form, which takes exactly `k`).
    For one seed every subset of its edges is equally likely, parallel ones to one source apart, which share
    its number; what seeds share they draw together, so a batch meets fewer distinct nodes: worth it with
    `deduplicated_loss`. A row of more than `scan` edges first draws `scan` of them, each subset equally
    likely; `scan` is `k` at least, and at the largest degree there is no first draw.

    A node has the same neighbors wherever it is in a hop. Hops draw apart, unless there is a `key` of the
    draw's own: then all that is drawn with it agrees, whatever key the sampler has. `Labor(key=key)` of a
    step's key shares the numbers among its layers; one that changes every few steps, among those steps too.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> from jsage.sampling import sample_neighbors
    >>> graph = from_edges([*range(2, 9)] * 2, [0] * 7 + [1] * 7, num_nodes=9)
    >>> block = sample_neighbors(jax.random.key(0), graph, jnp.array([0, 1]), 3, draw=Labor())
    >>> bool((block.src[0] == block.src[1]).all()), block.mask.sum(1)
    (True, Array([3, 3], dtype=int32))
    """

    scan: int = 32
    key: PRNGKey | None = None

    def offsets(
        self, key: PRNGKey, graph: Adjacency, nodes: Int[Array, " rows"], k: int
    ) -> tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]:
        """`(offset, mask)`: the edges drawn, by number; a row with no more than `k` gives them in order."""
        check_fanout(k)
        key, scan, size = key if self.key is None else self.key, max(self.scan, k), graph.degrees(nodes)
        rank, *first = jax.random.bits(jax.random.fold_in(threefry_key(key), _LABOR), (3, 2), jnp.uint32)
        slot = jax.lax.broadcasted_iota(jnp.uint32, (scan, 1), 0)
        candidate, valid = choose(node_numbers(first[1], node_numbers(first[0], nodes)[None] + slot), size)
        source = graph.edges_at(nodes, candidate, valid)[0]
        word = node_numbers(rank, source)
        chosen = jnp.take_along_axis(candidate, _smallest(word, valid, k), 1)
        slot = jax.lax.broadcasted_iota(jnp.int32, chosen.shape, 1)
        mask = slot < size[:, None]
        return jnp.where(mask, jnp.where((size <= k)[:, None], slot, chosen), 0), mask


def _smallest(word: UInt32[Array, "rows scan"], valid: Array, k: int) -> Int[Array, "rows k"]:
    """Where the `k` smallest words of each row are, the smallest first; ties by the place, as do words that
    differ in the bits alone that hold a place."""
    bits = max(word.shape[1] - 1, 1).bit_length()
    place = jax.lax.broadcasted_iota(jnp.uint32, word.shape, 1)
    packed = jnp.where(valid, word >> bits << bits | place, _LAST).T  # slot-major: a row's words in registers

    def pick(i, state):
        packed, chosen = state
        least = packed.min(0)
        return jnp.where(packed == least[None], _LAST, packed), chosen.at[i].set(least)

    chosen = jnp.zeros((k, word.shape[0]), jnp.uint32)
    chosen = jax.lax.fori_loop(0, k, pick, (packed, chosen))[1] & jnp.uint32(2**bits - 1)
    return jnp.minimum(chosen.astype(jnp.int32), word.shape[1] - 1).T


def _mixed(number: Array, one: int, other: int, shifts: tuple[int, int, int]) -> Array:
    for shift, factor in zip(shifts, (one, other, 1), strict=True):
        number = (number ^ number >> shift) * np.uint32(factor)
    return number
