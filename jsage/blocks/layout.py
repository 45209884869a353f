"""What every layout of one hop answers, and what they share."""

from typing import Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Array, Bool, Float, Int, PyTree

from jsage.blocks.reductions import MAX, SUM, Reduction, weighted_source
from jsage.typing import EdgeData, MessageFn

Rows: TypeAlias = Float[Array, "num_src d"]
Sources: TypeAlias = Float[Array, "rows d"]
Pooled: TypeAlias = Float[Array, "num_dst d"]
Size: TypeAlias = Any
"""A number of rows: an int, or a symbol (`jax.export`)."""


@runtime_checkable
class Block(Protocol):
    """What every layout answers."""

    @property
    def edge_data(self) -> EdgeData:
        """Named arrays, one row a slot."""
        ...

    @property
    def num_dst(self) -> int:
        """The number of destinations."""
        ...

    def own(self, h: Rows) -> Pooled:
        """The destinations' own rows."""
        ...

    def sum(self, h: Rows) -> Pooled:
        """The sum over each destination's valid slots."""
        ...

    def max(self, h: Rows) -> Pooled:
        """The maximum over each destination's valid slots, 0 where there are none."""
        ...

    def reduce(
        self, message: MessageFn, reduction: Reduction, dst: PyTree, src: PyTree, own: PyTree = None
    ) -> PyTree:
        """Each destination's messages, reduced: `message(dst_rows, src_rows, edge_rows)` for each slot.

        `dst` is a tree of arrays with a row a destination, `src` one with a row a source, and `edge_rows` the
        slots' rows of `edge_data`. `own` is one message more a destination, already made: a self-loop.
        Messages may close over parameters; they and all rows get gradients, padding never reaches any.
        """
        ...

    def by_slot(self, num_src: Size) -> bool:
        """Whether `sources` copies a row for each slot of a table of so many rows."""
        ...

    def reads_again(self, num_src: Size) -> bool:
        """Whether rows are read many times over, so that to transform each of them once is less work."""
        ...

    def degrees(self) -> Int[Array, " num_dst"]:
        """The number of valid slots."""
        ...

    def sources(self, h: Rows) -> tuple[Sources, "Block"]:
        """Rows that hold every neighbor at least once, and the block that reads them."""
        ...

    def read(self, valid: Bool[Array, " num_dst"], num_src: int) -> Bool[Array, " num_src"]:
        """Which of `num_src` rows the valid destinations read."""
        ...


def plain_reduction(block: Any, message: MessageFn, reduction: Reduction, src: PyTree, own: PyTree) -> Any:
    """The block's `sum` or `max` where that is what `reduce` is asked for, else None.

    >>> from jsage.blocks import Tree
    >>> import jax.numpy as jnp
    >>> block, rows = Tree(jnp.array([[True]])), jnp.ones((2, 3))
    >>> plain_reduction(block, weighted_source, SUM, rows, None) == block.sum
    True
    """
    if message is not weighted_source or own is not None or getattr(src, "ndim", None) != 2:
        return None
    return block.sum if reduction is SUM else block.max if reduction is MAX else None


def few_rows(num_src: Size, num_dst: Size) -> bool:
    """Whether a table is small beside the destinations; a size that is a symbol is taken to be large.

    >>> few_rows(8, 2), few_rows(9, 2)
    (True, False)
    """
    return isinstance(num_src, int) and num_src <= 4 * num_dst
