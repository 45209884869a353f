"""A layer for graphs with types: a convolution a relation, joined a type."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jsage.blocks.typed import TypedBlock
from jsage.typing import EdgeType


def _picked(second: Array, a: Array, b: Array) -> Array:
    """One of both, with all of the gradient; that of `jnp.max` is NaN where rows are rounded otherwise."""
    return jnp.where(second | jnp.isnan(b), b, a)


COMBINE: dict[str, Callable[[Sequence[Array]], Array]] = {
    "sum": lambda rows: reduce(jnp.add, rows),
    "mean": lambda rows: reduce(jnp.add, rows) / len(rows),
    "min": lambda rows: reduce(lambda a, b: _picked(b < a, a, b), rows),
    "max": lambda rows: reduce(lambda a, b: _picked(b > a, a, b), rows),
    "concat": lambda rows: jnp.concatenate(rows, -1),
}
"""How the results of several relations into one type become one."""


class HeteroConv(nn.Module):
    """Each relation's convolution of its own, their results joined a destination type (PyG's `HeteroConv`).

    Any convolution runs in it as it is. Where a relation joins two types, its destinations' own rows are of
    another table and may be of another width: attention needs `own=False` (and `GATConv` `share=False`)
    there. A relation without edges is joined like others.

    Differs from PyG's: relations are joined in sorted order, which `"concat"` shows; `own` keeps the types
    that no relation points at. Raises ValueError for an unknown `combine` and for rows that are not there.

    >>> import jax
    >>> from functools import partial
    >>> from jsage.graph import typed_graph
    >>> from jsage.nn import SAGEConv
    >>> from jsage.sampling import typed_full_block
    >>> graph = typed_graph({"user": 2, "item": 3}, {("user", "buys", "item"): ([0, 1], [2, 2])})
    >>> h = {"user": jnp.ones((2, 4)), "item": jnp.ones((3, 5))}
    >>> layer = HeteroConv(lambda relation: partial(SAGEConv, 8))
    >>> out, _ = layer.init_with_output(jax.random.key(0), h, typed_full_block(graph))
    >>> {name: rows.shape for name, rows in out.items()}
    {'item': (3, 8)}
    """

    conv: Callable[[EdgeType], Callable[..., nn.Module]]
    """What makes a relation's convolution, from `name=`: `lambda relation: partial(SAGEConv, 64)`."""
    combine: str = "sum"
    """`"sum"`, `"mean"`, `"min"`, `"max"` or `"concat"`."""
    targets: tuple[str, ...] | None = None
    """The types that get rows, where others are not asked for: a last layer's; None: all."""
    own: Callable[..., nn.Module] | None = None
    """Makes, from `name=`, a layer of own rows for types that no relation points at; None: they get none."""

    @nn.compact
    def __call__(
        self, h: Mapping[str, Any], block: TypedBlock, *, deterministic: bool = True
    ) -> dict[str, Float[Array, "num_dst d_out"]]:
        """Rows of each type at a hop's sources to rows at its destinations."""
        if self.combine not in COMBINE:
            raise ValueError(f"combine must be one of {sorted(COMBINE)}, got {self.combine!r}")
        found: dict[str, list[Array]] = {}
        for relation in block.relations:
            source, _, target = relation
            if self.targets is not None and target not in self.targets:
                continue
            for name in (source, target):
                if name not in h:
                    raise ValueError(
                        f"relation {relation} reads rows of type {name!r}, got {sorted(h)}: pass them; "
                        "after a layer in which nothing points at that type, give that layer own="
                    )
            rows, one = block.join(h, relation)
            conv = self.conv(relation)(name="__".join(relation))
            found.setdefault(target, []).append(conv(rows, one, deterministic=deterministic))
        out = {name: COMBINE[self.combine](rows) for name, rows in found.items()}
        if self.own is not None:
            alone = [name for name in self.targets or block.types(h) if name not in out]
            out |= {name: self.own(name=name)(block.own(h, name)) for name in alone}
        return dict(sorted(out.items()))
