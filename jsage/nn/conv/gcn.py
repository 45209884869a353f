"""The graph convolution of Kipf and Welling."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from jsage.blocks import MAX, aggregate
from jsage.blocks.layout import Block
from jsage.graph.sparse import is_sparse
from jsage.nn.attention import drop_inputs
from jsage.nn.dense import Dense, Rows
from jsage.typing import EdgeData


class GCNConv(nn.Module):
    """`h_v' = W sum_{u in N(v) and v} e_uv / sqrt(d_u d_v) h_u + b` (Kipf and Welling, 2017, equation 9).

    The weights come with the graph, `graph = jsage.graph.gcn_weights(graph)`: the degrees of both ends are
    not to be seen in a block. The layer is the mean of its neighbors' weighted rows, exact on whole
    neighborhoods and unbiased on those drawn uniformly, and the own row times `edge_data["own_weight"]`,
    where the graph has that (an isolated node's is 1). PyG counts degrees in the sampled subgraph instead.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges, gcn_weights
    >>> from jsage.sampling import full_block
    >>> block = full_block(gcn_weights(from_edges([0, 1, 2], [1, 0, 0], num_nodes=3)))
    >>> GCNConv(8).init_with_output(jax.random.key(0), jnp.ones((3, 4)), block)[0].shape
    (3, 8)
    """

    features: int
    """Output width."""
    bias: bool = True
    dropout: float = 0.0
    """Rate on the layer's inputs; draws from the rng stream `"dropout"`."""
    dtype: DTypeLike | None = None
    """Dtype of the computation, for instance `jnp.bfloat16`; parameters and sums are float32."""

    @nn.compact
    def __call__(
        self, h: Rows, block: Block, *, deterministic: bool = True
    ) -> Float[Array, "num_dst features"]:
        """`[num_src, d]` rows at a block's sources to `[num_dst, features]` at its destinations."""
        if "weight" not in block.edge_data:
            raise ValueError(
                "GCNConv reads the weights of a graph convolution, and the block has none: build it from "
                "jsage.graph.gcn_weights(graph)"
            )
        h, block = drop_inputs(self.dropout, deterministic, h, block)
        dense = Dense(self.features, use_bias=False, dtype=self.dtype, name="dense")
        before = block.reads_again(h.shape[0]) and self.features < h.shape[1]
        if before or is_sparse(h):  # the same sum, of shorter rows
            h, block = block.sources(h)
            out = _propagated(dense(h), block)
        else:
            out = dense(_propagated(h, block))
        if self.bias:
            out = out + self.param("bias", nn.initializers.zeros, (self.features,))[None].astype(out.dtype)
        return out


def _propagated(h: Array, block: Block) -> Array:
    """`sum_u weight_uv h_u + own_weight_v h_v` of whole neighborhoods, or an estimate from a part of each."""
    total = aggregate.mean(h, block)
    if "own_weight" not in block.edge_data:
        return total

    def message(dst: Any, src: Any, edge: EdgeData) -> Array:
        return edge["own_weight"][:, None]

    own = block.reduce(message, MAX, None, h)  # the same number on all of a node's edges
    own = jnp.where(block.degrees()[:, None] > 0, own, 1).astype(h.dtype)
    return total + own * block.own(h)
