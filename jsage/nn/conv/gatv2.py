"""Attention that depends on both ends."""

import flax.linen as nn
from jaxtyping import Array, Float

from jsage.blocks.layout import Block
from jsage.nn.attention import AttentionConv, drop_inputs, head_sums, made_rows
from jsage.nn.dense import Rows
from jsage.typing import EdgeData


class GATv2Conv(AttentionConv):
    """Attention that depends on both ends (Brody, Alon and Yahav, 2022, equation 7); for each head

        h_v' = sum_u alpha_uv W_src h_u + b,
        alpha_uv = softmax_u a . LeakyReLU(W_src h_u + W_dst h_v + W_e e_uv)

    over the neighbors `u` of `v` and, with `own`, over `v` itself, with the mean of its edges' features `e`.
    With `bias` both matrices have one, as in PyG.
    That slot is no edge of the graph: attention weights come in the order of the block's slots, the own
    ones beside them (`attention_of`). Without anything to read the sum is 0.

    Differs from PyG's `GATv2Conv`: `features` is the width of the output, all heads together; edges `v -> v`
    of the graph are edges like others (`jsage.graph.remove_self_loops`).

    >>> import jax, jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> h, block = jnp.ones((3, 4)), Tree(jnp.array([[True, True]]))
    >>> GATv2Conv(8, heads=2).init_with_output(jax.random.key(0), h, block)[0].shape
    (1, 8)
    """

    own: bool = True
    """Whether a node reads itself too."""
    share: bool = False
    """`W_dst` is `W_src`."""
    residual: bool = False
    """Add `W_res h_v`."""
    negative_slope: float = 0.2

    @nn.compact
    def __call__(
        self, h: Rows, block: Block, *, deterministic: bool = True
    ) -> Float[Array, "num_dst features"]:
        """`[num_src, d]` rows at a block's sources to `[num_dst, features]` at its destinations."""
        h, block = drop_inputs(self.dropout, deterministic, h, block)
        rows = block.own(h)
        source = self.by_head("src", h.shape[1], self.bias)
        asked = (source if self.share else self.by_head("dst", rows.shape[1], self.bias))(rows)
        att = self.param("att", nn.initializers.glorot_uniform(), (self.heads, self.head_width()))
        of_edge = self.of_edges(block)

        def read(asked: Array, value: Array, more: Array | None) -> tuple[Array, Array]:
            met = asked + value if more is None else asked + value + more
            return head_sums(nn.leaky_relu(met, self.negative_slope), att), self.split(value)

        own = read(asked, source(rows), self.of_own(of_edge, block, h)) if self.own else None
        sent, make, block = made_rows(source, h, block)

        def message(asked: Array, sent: Array, edge: EdgeData) -> tuple[Array, Array]:
            return read(asked, make(sent), of_edge(edge))

        out = self.attend(message, block, (asked, sent), own, deterministic)
        return self.shifted(self.joined(out), rows if self.residual else None)
