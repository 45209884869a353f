"""Attention as a sum of what both ends say."""

from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

from jsage.blocks.layout import Block
from jsage.nn.attention import AttentionConv, drop_inputs, head_sums, made_rows
from jsage.nn.dense import Rows
from jsage.typing import EdgeData


class GATConv(AttentionConv):
    """Graph attention (Veličković et al., 2018, equations 1 to 6); for each head

        h_v' = sum_u alpha_uv W h_u + b,
        alpha_uv = softmax_u LeakyReLU(a_s . W h_u + a_d . W h_v + a_e . W_e e_uv)

    over the neighbors `u` of `v` and, with `own`, over `v` itself, with the mean of its edges' features `e`.
    That slot is no edge of the graph: attention weights come in the order of the block's slots, the own
    ones beside them (`attention_of`). Without anything to read the sum is 0.

    Differs from PyG's `GATConv`: `features` is the width of the output, all heads together; edges `v -> v`
    of the graph are edges like others (`jsage.graph.remove_self_loops`).

    >>> import jax, jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> h, block = jnp.ones((3, 4)), Tree(jnp.array([[True, True]]))
    >>> GATConv(8, heads=2).init_with_output(jax.random.key(0), h, block)[0].shape
    (1, 8)
    """

    own: bool = True
    """Whether a node reads itself too."""
    share: bool = True
    """`W h_v` has the sources' matrix; False: one of its own, for own rows of another table."""
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
        values = self.by_head("dense", h.shape[1], bias=False)
        met = (values if self.share else self.by_head("dst", rows.shape[1], bias=False))(rows)
        to_source, to_dst = self._logit("att_src"), self._logit("att_dst")
        of_edge = self.of_edges(block)
        to_edge = self._logit("att_edge") if self.edge else None

        def make(rows: Array) -> tuple[Array, Array]:
            value = values(rows)
            return to_source(value), value

        def logit(asked: Array, said: Array, more: Array | None) -> Array:
            total = asked + said if to_edge is None or more is None else asked + said + to_edge(more)
            return nn.leaky_relu(total, self.negative_slope)

        asked, own = to_dst(met), None
        if self.own:
            mine = met if self.share else values(rows)
            own = logit(asked, to_source(mine), self.of_own(of_edge, block, h)), self.split(mine)
        sent, made, block = made_rows(make, h, block)

        def message(asked: Array, sent: Array, edge: EdgeData) -> tuple[Array, Array]:
            said, value = made(sent)
            return logit(asked, said, of_edge(edge)), self.split(value)

        out = self.attend(message, block, (asked, sent), own, deterministic)
        return self.shifted(self.joined(out), rows if self.residual else None)

    def _logit(self, name: str) -> Callable[[Array], Array]:
        att = self.param(name, nn.initializers.glorot_uniform(), (self.heads, self.head_width()))
        return lambda rows: head_sums(rows, att)
