"""Attention by queries and keys."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jsage.blocks.layout import Block
from jsage.nn.attention import AttentionConv, drop_inputs, head_sums, made_rows
from jsage.nn.dense import Dense, Rows
from jsage.typing import EdgeData


class TransformerConv(AttentionConv):
    """Dot-product attention over neighbors (Shi et al., 2021, equations 3 to 5); for each head of width `C`

        m_v = sum_u alpha_uv (W_v h_u + W_e e_uv),
        alpha_uv = softmax_u W_q h_v . (W_k h_u + W_e e_uv) / sqrt(C)

    and `h_v' = m_v + r_v` with `r_v = W_r h_v`, or, with `beta`, `h_v' = b r_v + (1 - b) m_v` with
    `b = sigmoid(w . [m_v; r_v; m_v - r_v])`. All matrices but `W_e` have a bias. A node without neighbors has
    `m_v = 0`.

    Differs from PyG's `TransformerConv`: `features` is the width of the output, all heads together.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> h, block = jnp.ones((3, 4)), Tree(jnp.array([[True, True]]))
    >>> TransformerConv(8, heads=2, beta=True).init_with_output(jax.random.key(0), h, block)[0].shape
    (1, 8)
    """

    self_term: bool = True
    """Whether `r_v` is there."""
    beta: bool = False
    """Gate between `m_v` and `r_v`."""

    @nn.compact
    def __call__(
        self, h: Rows, block: Block, *, deterministic: bool = True
    ) -> Float[Array, "num_dst features"]:
        """`[num_src, d]` rows at a block's sources to `[num_dst, features]` at its destinations."""
        if self.beta and not self.self_term:
            raise ValueError("beta gates between neighbors and the node's own row: it needs self_term=True")
        h, block = drop_inputs(self.dropout, deterministic, h, block)
        rows, width = block.own(h), self.head_width()
        scale = jnp.full((self.heads, width), width**-0.5)
        asked = self.by_head("query", rows.shape[1], bias=self.bias)(rows)
        key, value = (self.by_head(name, h.shape[1], bias=self.bias) for name in ("key", "value"))
        of_edge = self.of_edges(block)
        sent, made, block = made_rows(lambda rows: (key(rows), value(rows)), h, block)

        def message(asked: Array, sent: Array, edge: EdgeData) -> tuple[Array, Array]:
            (key, value), more = made(sent), of_edge(edge)
            if more is not None:
                key, value = key + more, value + more
            met = asked.astype(jnp.float32) * key.astype(jnp.float32)
            return head_sums(met, scale), self.split(value)

        out = self.joined(self.attend(message, block, (asked, sent), None, deterministic))
        if not self.self_term:
            return out
        own = Dense(self.features, use_bias=self.bias, dtype=self.dtype, name="self")(rows)
        if not self.beta:
            return out + own
        both = jnp.concatenate([out, own, out - own], -1)
        gate = nn.sigmoid(nn.Dense(1, use_bias=False, dtype=self.dtype, name="beta")(both))
        return gate * own + (1 - gate) * out
