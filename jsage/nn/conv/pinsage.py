"""The convolution of PinSage: neighbors pooled by their importance."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from jsage.blocks import aggregate
from jsage.blocks.layout import Block
from jsage.nn.activation import relu
from jsage.nn.conv.sage import l2_normalize
from jsage.nn.dense import Dense, Dropout, Rows


class PinSAGEConv(nn.Module):
    """Importance pooling (Ying et al., 2018, Algorithm 1), with `a_uv = edge_data["weight"]`:

        n_u = sum_v a_uv ReLU(Q h_v + q) / sum_v a_uv,   z_u = ReLU(W [h_u ; n_u] + w),   z_u / ||z_u||.

    `W [h_u ; n_u]` is written as two matrices. Without weights `n_u` is the plain mean; where they sum to 0,
    and without neighbors, it is 0. `GraphSAGE(conv=PinSAGEConv)` stacks it: the ReLU that follows changes
    nothing. Blocks with such weights come from `importance_blocks`. The dense layers of Algorithm 2 that
    follow the last convolution are not part of it.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> block = Tree(jnp.array([[True, True]]), {"weight": jnp.array([[0.75, 0.25]])})
    >>> PinSAGEConv(8).init_with_output(jax.random.key(0), jnp.ones((3, 4)), block)[0].shape
    (1, 8)
    """

    features: int
    """Output width."""
    hidden: int | None = None
    """Width of the transformed neighbors, the rows of `Q`; None: the output's."""
    normalize: bool = True
    """Scale each output row to length 1; a zero row stays zero."""
    dropout: float = 0.0
    """Rate on the inputs of the dense layers; draws from the rng stream `"dropout"`."""
    dtype: DTypeLike | None = None
    """Dtype of the computation, for instance `jnp.bfloat16`; parameters and sums are float32."""

    @nn.compact
    def __call__(
        self, h: Rows, block: Block, *, deterministic: bool = True
    ) -> Float[Array, "num_dst features"]:
        """`[num_src, d]` rows at a block's sources to `[num_dst, features]` at its destinations."""
        drop = Dropout(self.dropout, deterministic=deterministic)
        dense = Dense(self.features, dtype=self.dtype, name="self")(drop(block.own(h)))
        rows, block = block.sources(h)
        sent = Dense(self.hidden or self.features, dtype=self.dtype, name="project")(drop(rows))
        pooled = _weighted_mean(relu(sent), block)
        out = relu(dense + nn.Dense(self.features, use_bias=False, dtype=self.dtype, name="neigh")(pooled))
        return l2_normalize(out) if self.normalize else out


def _weighted_mean(h: Array, block: Block) -> Array:
    total = aggregate.sum(jnp.ones((h.shape[0], 1), jnp.float32), block)
    some = total != 0
    return jnp.where(some, aggregate.sum(h, block) / jnp.where(some, total, 1), 0).astype(h.dtype)
