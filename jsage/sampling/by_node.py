"""Sampling that depends on the node alone: draws keyed by `(key, hop, node id)`.

A node's sampled neighbors, and so its embedding, are the same in any batch, order, batch size, padding or
number of devices: for inference that does not change from request to request.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Bool, Int, Integer, UInt32

from jsage._internal.checks import check_fanout
from jsage.blocks import Indexed
from jsage.blocks.layout import Block
from jsage.graph.adjacency import Adjacency
from jsage.sampling.draws import choose
from jsage.sampling.neighbors import sample_blocks, sample_neighbors
from jsage.typing import HostArray, PRNGKey

Nodes: TypeAlias = Integer[HostArray, " num_nodes"]

NODE = 0x6E6F6465
"""A counter that no other use of a key has: "node"."""


def node_bits(
    key: PRNGKey,
    nodes: Integer[Array, " num_nodes"],
    k: int,
    high: Integer[Array, " num_nodes"] | None = None,
) -> UInt32[Array, "k num_nodes"]:
    """`k` random words a node that depend on the key and the node's id alone.

    Threefry-2x32 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") of the counter `(id,
    slot // 2)`, under a hash of the key, whatever its kind: the quality of `jax.random.bits`, at its cost.
    `nodes` hold the ids' low 32 bits, in either kind of integer. `high` holds bits 32 to 47 of ids that have
    any; they are added to the counter's second word, times 2^16, so such ids take a `k` of 2^17 at most.

    >>> import jax, jax.numpy as jnp
    >>> alone = node_bits(jax.random.key(0), jnp.array([7]), 3)
    >>> bool((node_bits(jax.random.key(0), jnp.array([4, 7]), 3)[:, 1:] == alone).all())
    True
    """
    words = threefry_2x32(_words(key), jnp.uint32([NODE, 0]))  # apart from what fold_in and bits make
    shape = ((k + 1) // 2, nodes.shape[0])
    ids = jnp.broadcast_to(nodes.astype(jnp.uint32)[None], shape)
    slots = jax.lax.broadcasted_iota(jnp.uint32, shape, 0)
    if high is not None:
        slots = slots + (high.astype(jnp.uint32) << 16)[None]
    counter = jnp.stack([ids, slots])
    return threefry_2x32((words[0], words[1]), counter.ravel()).reshape(-1, nodes.shape[0])[:k]


def threefry_key(key: PRNGKey) -> PRNGKey:
    """A Threefry key of the first two words of `key`, of whatever kind it is: draws by node are made of them.

    >>> import jax
    >>> threefry_key(jax.random.key(1)) == jax.random.key(1)
    Array(True, dtype=bool)
    """
    return jax.random.wrap_key_data(jnp.stack(_words(key)), impl="threefry2x32")


def _words(key: PRNGKey) -> tuple[Array, Array]:
    data = jax.random.key_data(key).ravel()
    return data[0], data[1]


class ByNode(NamedTuple):
    """A draw without replacement that depends on the key and the node alone: `draw=ByNode()`.

    What `sample_blocks_by_node` draws with, for other samplers: as of a time a node's draw depends on the
    key, the node, and how many of its edges are visible then.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> from jsage.sampling import sample_neighbors
    >>> graph = from_edges(src=range(1, 9), dst=[0] * 8, num_nodes=9)
    >>> block = sample_neighbors(jax.random.key(0), graph, jnp.array([0, 3, 0]), 4, draw=ByNode())
    >>> bool((block.src[0] == block.src[2]).all())
    True
    """

    def offsets(
        self, key: PRNGKey, graph: Adjacency, nodes: Int[Array, " rows"], k: int
    ) -> tuple[Int[Array, "rows k"], Bool[Array, "rows k"]]:
        """`(offset, mask)`: the edges drawn, by number; each subset is equally likely."""
        check_fanout(k)
        return choose(node_bits(key, nodes, k), graph.degrees(nodes))


def sample_neighbors_by_node(key: PRNGKey, graph: Adjacency, seeds: Nodes, fanout: int) -> Indexed:
    """`sample_neighbors` without replacement, with each seed's draw keyed by its id.

    A seed that comes twice has the same neighbors both times; different seeds' are independent. Errors, and
    ids out of range, are as with `sample_neighbors`.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=range(1, 9), dst=[0] * 8, num_nodes=9)
    >>> block = sample_neighbors_by_node(jax.random.key(0), graph, jnp.array([0, 3, 0]), 4)
    >>> bool((block.src[0] == block.src[2]).all()), block.mask.sum(1)
    (True, Array([4, 0, 4], dtype=int32))
    """
    return sample_neighbors(key, graph, seeds, fanout, draw=ByNode())


def sample_blocks_by_node(
    key: PRNGKey, graph: Adjacency, seeds: Nodes, fanouts: Sequence[int]
) -> tuple[Block, ...]:
    """`sample_blocks` without replacement, with draws keyed by `(key, hop, node id)`.

    Each node's neighbors are an exact uniform sample. Under one key copies of a node share theirs in all
    batches, so keep the key for inference, and take another one for each step of training. Errors, and ids
    out of range, are as with `sample_neighbors`.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.data import digits
    >>> seeds = jnp.array([8, 5, 8])
    >>> _, last = sample_blocks_by_node(jax.random.key(0), digits().graph, seeds, fanouts=(2, 2))
    >>> last.mask.shape
    (3, 2)
    """
    return sample_blocks(threefry_key(key), graph, seeds, fanouts, draw=ByNode())
