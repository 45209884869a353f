"""Neighbors that seeds agree on: fewer distinct nodes for as many neighbors each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from jsage._internal.checks import check_fanout
from jsage.graph.adjacency import Adjacency
from jsage.sampling.by_node import node_bits
from jsage.sampling.draws import choose
from jsage.typing import PRNGKey

_LAST = np.uint32(2**32 - 1)


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
        candidate, valid = choose(node_bits(jax.random.fold_in(key, 1), nodes, scan), size)
        source = graph.edges_at(nodes, candidate, valid)[0]
        word = node_bits(key, source.ravel(), 1)[0].reshape(source.shape)
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
