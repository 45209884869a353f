"""A block whose edges change the rows that they bring: any aggregator reads edge features through it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jsage.blocks.edges import edge_rows, edge_width
from jsage.blocks.layout import Block, Size
from jsage.blocks.reductions import MAX, SUM, Reduction, weighted_source
from jsage.typing import EdgeData, MessageFn


class EdgeView(NamedTuple):
    """A block of the same edges, where a source's row is `change(row, edge_data)`; own rows stay."""

    block: Any
    change: Callable[[Array, EdgeData], Array]

    @property
    def edge_data(self) -> Any:
        """The block's: arrays, or their names alone (`EdgeNames`)."""
        return self.block.edge_data

    @property
    def num_dst(self) -> int:
        """The number of destinations."""
        return self.block.num_dst

    def own(self, h: PyTree) -> PyTree:
        """The destinations' own rows."""
        return self.block.own(h)

    def sum(self, h: Array) -> Array:
        """The sum of changed rows."""
        return self.reduce(weighted_source, SUM, None, h)

    def max(self, h: Array) -> Array:
        """The maximum of changed rows, 0 where there are none."""
        return self.reduce(weighted_source, MAX, None, h)

    def reduce(
        self, message: MessageFn, reduction: Reduction, dst: PyTree, src: PyTree, own: PyTree = None
    ) -> PyTree:
        """Messages that read changed rows, reduced."""
        change = self.change

        def changed(dst: PyTree, src: Array, edge: EdgeData) -> PyTree:
            return message(dst, change(src, edge), edge)

        return self.block.reduce(changed, reduction, dst, src, own)

    def by_slot(self, num_src: Size) -> bool:
        """As the block."""
        return self.block.by_slot(num_src)

    def reads_again(self, num_src: Size) -> bool:
        """Never: a row is another one on each edge."""
        return False

    def degrees(self) -> Int[Array, " num_dst"]:
        """The number of valid slots."""
        return self.block.degrees()

    def sources(self, h: Array) -> tuple[Array, "EdgeView"]:
        """Rows that hold every neighbor at least once, before they are changed."""
        rows, block = self.block.sources(h)
        return rows, self._replace(block=block)

    def read(self, valid: Bool[Array, " num_dst"], num_src: int) -> Bool[Array, " num_src"]:
        """As the block."""
        return self.block.read(valid, num_src)

    def then(self, function: Callable[[Array], Array]) -> "EdgeView":
        """The view whose rows are changed further."""
        first = self.change
        return self._replace(change=lambda row, edge: function(first(row, edge)))


def beside_edges(
    h: Float[Array, "num_src d"], block: Block, name: str
) -> tuple[Float[Array, "rows d_wide"], EdgeView]:
    """Rows with room for an array of `edge_data` behind them, and the view that puts each edge's there.

    >>> import jax.numpy as jnp
    >>> from jsage.blocks import Tree, aggregate
    >>> block = Tree(jnp.array([[True, True]]), {"age": jnp.array([[3.0, 5.0]])})
    >>> aggregate.max(*beside_edges(jnp.array([[0.0], [1.0], [2.0]]), block, "age"))
    Array([[2., 5.]], dtype=float32)
    """
    if block.by_slot(h.shape[0]):  # not a copy of a table that is larger than what is read of it
        h, block = block.sources(h)
    width = edge_width(block, name)

    def change(row: Array, edge: EdgeData) -> Array:
        behind = edge_rows(edge, name).astype(row.dtype)
        return row + jnp.pad(behind, ((0, 0), (row.shape[1] - width, 0)))

    return jnp.pad(h, ((0, 0), (0, width))), EdgeView(block, change)
