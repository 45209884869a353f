"""Isomorphism convolution with edge features."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from jsage.blocks import SUM
from jsage.blocks.layout import Block
from jsage.nn.activation import relu
from jsage.nn.alone import alone_on_edges
from jsage.nn.attention import drop_inputs
from jsage.nn.dense import Rows
from jsage.typing import EdgeData


class GINEConv(nn.Module):
    """`h_v' = MLP((1 + eps) h_v + sum_u ReLU(h_u + W_e e_uv + b_e))` (Hu et al., 2020, appendix A).

    `MLP` has two dense layers with a ReLU between. Without `edge` it is GIN (Xu et al., 2019, equation 4.1),
    of rows that pass a ReLU.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> block = Tree(jnp.array([[True, True]]), {"age": jnp.array([[3.0, 5.0]])})
    >>> GINEConv(8, edge="age").init_with_output(jax.random.key(0), jnp.ones((3, 4)), block)[0].shape
    (1, 8)
    """

    features: int
    """Output width."""
    edge: str | None = None
    """The array of `edge_data` that holds the edges' features `e`."""
    hidden: int | None = None
    """Width between the two dense layers; None: the output's."""
    eps: float = 0.0
    train_eps: bool = False
    """Whether `eps` is learned, from this value on."""
    dropout: float = 0.0
    """Rate on the layer's inputs; draws from the rng stream `"dropout"`."""
    dtype: DTypeLike | None = None
    """Dtype of the computation, for instance `jnp.bfloat16`; parameters and sums are float32."""

    @nn.compact
    def __call__(
        self, h: Rows, block: Block, *, deterministic: bool = True
    ) -> Float[Array, "num_dst features"]:
        """`[num_src, d]` rows at a block's sources to `[num_dst, features]` at its destinations."""
        h, block = drop_inputs(self.dropout, deterministic, h, block)
        own, of_edge = block.own(h), self._of_edges(block, h.shape[1])

        def message(dst: Any, src: Array, edge: EdgeData) -> Array:
            return relu(src + of_edge(edge))

        total = block.reduce(message, SUM, None, h)
        eps = self.param("eps", nn.initializers.constant(self.eps), ()) if self.train_eps else self.eps
        out = jnp.asarray(1 + eps, own.dtype) * own + total
        out = relu(nn.Dense(self.hidden or self.features, dtype=self.dtype, name="first")(out))
        return nn.Dense(self.features, dtype=self.dtype, name="second")(out)

    def _of_edges(self, block: Block, d: int) -> Callable[[EdgeData], Any]:
        """What an edge's features add to a row of `d` numbers."""
        if self.edge is None:
            return lambda edge: 0
        return alone_on_edges(nn.Dense(d, dtype=self.dtype, name="edge"), block, self.edge)
