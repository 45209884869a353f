"""A block between two tables: destinations have rows of their own, of another width than the sources'."""

from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Int, PyTree

from jsage.blocks.layout import Block, Rows, Size
from jsage.blocks.reductions import Reduction
from jsage.typing import MessageFn


class OwnRows(NamedTuple):
    """A block whose destinations' own rows are these, not some of `h`: users that read items.

    `block` joins the destinations to rows of `h`; where it says their own rows are is not read. Dropout of a
    layer's inputs leaves the rows given here as they are.

    >>> import jax.numpy as jnp
    >>> from jsage.blocks import aggregate, edge_list
    >>> items, users = jnp.array([[1.0], [2.0]]), jnp.array([[5.0, 6.0]])
    >>> block = OwnRows(edge_list(jnp.array([0, 1]), jnp.array([0, 0]), num_dst=1), users)
    >>> block.own(items), aggregate.mean(items, block)
    (Array([[5., 6.]], dtype=float32), Array([[1.5]], dtype=float32))
    """

    block: Any
    rows: PyTree
    """One row a destination."""

    @property
    def edge_data(self) -> Any:
        """The block's: arrays, or their names alone (`EdgeNames`)."""
        return self.block.edge_data

    @property
    def num_dst(self) -> int:
        """The number of destinations."""
        return self.block.num_dst

    def own(self, h: PyTree) -> PyTree:
        """The rows given."""
        return self.rows

    def sum(self, h: Rows) -> Array:
        """As the block."""
        return self.block.sum(h)

    def max(self, h: Rows) -> Array:
        """As the block."""
        return self.block.max(h)

    def reduce(
        self, message: MessageFn, reduction: Reduction, dst: PyTree, src: PyTree, own: PyTree = None
    ) -> PyTree:
        """As the block."""
        return self.block.reduce(message, reduction, dst, src, own)

    def by_slot(self, num_src: Size) -> bool:
        """As the block."""
        return self.block.by_slot(num_src)

    def reads_again(self, num_src: Size) -> bool:
        """As the block."""
        return self.block.reads_again(num_src)

    def degrees(self) -> Int[Array, " num_dst"]:
        """The number of valid slots."""
        return self.block.degrees()

    def sources(self, h: Any) -> tuple[Any, Block]:
        """As the block, with the rows given."""
        rows, block = self.block.sources(h)
        return rows, self._replace(block=block)

    def read(self, valid: Bool[Array, " num_dst"], num_src: int) -> Bool[Array, " num_src"]:
        """As the block: among them rows of `h` where it has the destinations."""
        return self.block.read(valid, num_src)
