"""Deep Graph Infomax: embeddings that agree with a summary of the graph, and corrupted ones that do not."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jsage._internal.arrays import take
from jsage.blocks.block import block_ids, read_tables, slot_owners, with_ids
from jsage.blocks.layout import Block
from jsage.nn.decoders import Bilinear
from jsage.typing import PRNGKey

Rows: TypeAlias = Float[Array, "num_src d"] | None
Input: TypeAlias = tuple[Rows, tuple[Block, ...]]
CorruptFn: TypeAlias = Callable[[PRNGKey, Rows, Sequence[Block], Bool[Array, " num_seeds"]], Input]
"""`(key, h, blocks, mask) -> (h, blocks)`: the same neighborhoods, with other features."""


class DeepGraphInfomax(nn.Module):
    """Scores of true and of corrupted embeddings against a summary: `h_vᵀ W s` and `h̃_vᵀ W s`.

    `s = σ(mean of the valid h_v)`. Train any encoder by `jsage.losses.dgi(*scores, mask)`; its parameters
    are those under `"encoder"`. Veličković et al. (2019), section 3.4; on sampled blocks it is the minibatch
    form of section 4.2: the summary is that of the batch. All costs go with the batch, not with the graph.

    >>> from jsage.graph import from_edges
    >>> from jsage.nn import GraphSAGE
    >>> from jsage.sampling import sample_blocks
    >>> graph, features = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3), jnp.eye(3)
    >>> blocks = sample_blocks(jax.random.key(0), graph, jnp.array([0, 2]), fanouts=(2, 3))
    >>> model = DeepGraphInfomax(GraphSAGE(hidden=8, out=4))
    >>> keys = {"params": jax.random.key(1), "corrupt": jax.random.key(2)}
    >>> (positive, negative), params = model.init_with_output(keys, features, blocks)
    >>> positive.shape, sorted(params["params"])
    ((2,), ['discriminator', 'encoder'])
    """

    encoder: Callable[..., Float[Array, "num_seeds d"]]
    """A module, called as `encoder(h, blocks, mask=..., deterministic=...)`: a `GraphSAGE`."""
    corrupt: CorruptFn | None = None
    """How features are shuffled, by the rng stream `"corrupt"`: `shuffle_batch` (None), `shuffle_patches`."""

    def setup(self) -> None:
        """Name the discriminator."""
        self.discriminator = Bilinear()

    def __call__(
        self,
        h: Rows,
        blocks: Sequence[Block],
        *,
        mask: Bool[Array, " num_seeds"] | None = None,
        deterministic: bool = True,
    ) -> tuple[Float[Array, " num_seeds"], Float[Array, " num_seeds"]]:
        """Scores of the seeds' embeddings and of their corrupted ones; in invalid rows they are 0.

        `h` and `blocks` are what the encoder takes; `mask` tells valid seeds from padding.
        """
        valid = jnp.ones(blocks[-1].num_dst, bool) if mask is None else mask
        corrupted = (self.corrupt or shuffle_batch)(self.make_rng("corrupt"), h, blocks, valid)
        true, false = (
            jnp.where(valid[:, None], self.encoder(*given, mask=valid, deterministic=deterministic), 0)
            for given in ((h, tuple(blocks)), corrupted)
        )
        summary = summarize(true, valid)
        return self.discriminator(summary, true), self.discriminator(summary, false)


def summarize(rows: Float[Array, "num_seeds d"], mask: Bool[Array, " num_seeds"]) -> Float[Array, " d"]:
    """`σ` of the mean over the valid rows (Veličković et al., 2019, equation 3), in float32.

    >>> summarize(jnp.array([[1.0], [-1.0], [jnp.nan]]), jnp.array([True, True, False]))
    Array([0.5], dtype=float32)
    """
    total = jnp.where(mask[:, None], rows, 0).sum(0, dtype=jnp.float32)
    return jax.nn.sigmoid(total / jnp.maximum(mask.sum(), 1).astype(jnp.float32))


def shuffle_batch(key: PRNGKey, h: Rows, blocks: Sequence[Block], mask: Bool[Array, " num_seeds"]) -> Input:
    """Every place that a valid seed reads features from reads those of another such place of the batch.

    The places are permuted, uniformly: destinations and slots of `blocks[0]`, each a node of its own. Over
    the whole graph (`full_block`) that shuffles the rows of the feature table (Veličković et al., 2019,
    section 4.2). Padding is neither moved nor read.

    >>> from jsage.blocks import Tree
    >>> block, h = Tree(jnp.array([[True, True, False]])), jnp.array([[1.0], [2.0], [3.0], [9.0]])
    >>> shuffle_batch(jax.random.key(0), h, [block], jnp.array([True]))[0].ravel()
    Array([3., 1., 2., 9.], dtype=float32)
    """
    return _shuffle(key, h, blocks, mask, None)


def shuffle_patches(key: PRNGKey, h: Rows, blocks: Sequence[Block], mask: Bool[Array, " num_seeds"]) -> Input:
    """`shuffle_batch` within each seed's own sampled neighborhood.

    What Veličković et al. (2019), section 4.2, do on large graphs: each patch is a graph of its own. Needs
    the trees of `sample_blocks`, in which seeds share no place, and raises ValueError for other blocks.

    >>> from jsage.blocks import Tree
    >>> block = Tree(jnp.array([[True], [True]]))
    >>> h = jnp.array([[1.0], [2.0], [10.0], [20.0]])
    >>> shuffle_patches(jax.random.key(0), h, [block], jnp.array([True, True]))[0].ravel()
    Array([10., 20.,  1.,  2.], dtype=float32)
    """
    owner = jnp.arange(mask.shape[0], dtype=jnp.int32)
    for k, block in reversed(list(enumerate(blocks))):
        places = slot_owners(owner, block)
        if places is None or (k and block_ids(block) is not None):
            raise ValueError(
                f"patches are told apart in the trees of sample_blocks, got {type(block).__name__} as block "
                f"{k}: use shuffle_batch"
            )
        owner = places
    return _shuffle(key, h, blocks, mask, owner)


def _shuffle(
    key: PRNGKey, h: Rows, blocks: Sequence[Block], mask: Array, owner: Int[Array, " places"] | None
) -> Input:
    """Shuffle ids where the first block reads a table by them, and the rows themselves otherwise."""
    valid = mask
    for k in range(len(blocks) - 1, 0, -1):
        valid = blocks[k].read(valid, blocks[k - 1].num_dst)
    first, rest = blocks[0], tuple(blocks[1:])
    if (ids := block_ids(first)) is not None:
        _, tree = read_tables((), first)
        ids = take(ids, _permutation(key, tree.read(valid, ids.size), owner))
        return h, (with_ids(first, ids), *rest)
    if h is None:
        raise ValueError(
            f"without features nodes are shuffled by their ids, which a {type(first).__name__} has none of"
        )
    return take(h, _permutation(key, first.read(valid, h.shape[0]), owner)), (first, *rest)


def _permutation(key: PRNGKey, valid: Array, owner: Array | None) -> Int[Array, " places"]:
    """A uniform permutation of the valid places of each owner; the invalid stay where they are.

    Places in their own order and in a random one, both grouped alike: the k-th goes to where the k-th is.
    """
    place = jnp.arange(valid.shape[0], dtype=jnp.int32)
    group = jnp.where(valid, 0 if owner is None else owner, valid.shape[0])
    number = jax.random.bits(key, valid.shape, jnp.uint32)
    _, to = jax.lax.sort((group, place), num_keys=1)
    _, _, source = jax.lax.sort((group, number, place), num_keys=2)
    return jnp.where(valid, jnp.zeros_like(place).at[to].set(source, unique_indices=True), place)
