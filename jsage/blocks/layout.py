"""What every layout of one hop answers, and what they share."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
from jaxtyping import Array, Bool, Int, Num, PyTree

from jsage.blocks.reductions import MAX, SUM, Reduction, weighted_source
from jsage.graph.sparse import is_sparse
from jsage.typing import EdgeData, HostArray, MessageFn

Rows: TypeAlias = Num[HostArray, "num_src *d"]
Sources: TypeAlias = Num[Array, "rows *d"]
Pooled: TypeAlias = Num[Array, "num_dst *d"]
Size: TypeAlias = Any
"""A number of rows: an int, or a symbol (`jax.export`)."""


@runtime_checkable
class Block(Protocol):
    """What every layout answers."""

    @property
    def edge_data(self) -> EdgeData:
        """Named arrays in the layout's own shape and order; `reduce` gives their rows to messages."""
        ...

    @property
    def num_dst(self) -> int:
        """The number of destinations."""
        ...

    def own(self, h: Any) -> Any:
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

    def sources(self, h: Any) -> tuple[Any, "Block"]:
        """Rows that hold every neighbor at least once, and the block that reads them."""
        ...

    def read(self, valid: Bool[Array, " num_dst"], num_src: int) -> Bool[Array, " num_src"]:
        """Which of `num_src` rows the valid destinations read."""
        ...


SPARSE_ROWS = (
    "sparse features are read by dense layers alone, and this layer reduces its neighbors' rows as they are, "
    "expected dense rows, got SparseRows: take SAGEConv with sum, mean, gcn or Pool, GCNConv, GATConv, "
    "GATv2Conv or TransformerConv for the first layer, or make the features dense, `features.toarray()`"
)


class EdgeNames(Mapping[str, Any]):
    """The names of `edge_data` where no edge is at hand.

    >>> names = EdgeNames(["age", "weight"])
    >>> "weight" in names, names.seen
    (True, {'weight'})
    """

    def __init__(self, names: Iterable[str]):
        self._names = tuple(names)
        shapes = names.items() if isinstance(names, Mapping) else ()
        self.widths = {name: math.prod(rows.shape[1:]) for name, rows in shapes}
        """How many numbers an edge has in each, where arrays with a row an edge came with the names."""
        self.seen: set[str] = set()
        """Those that were asked about."""

    def __contains__(self, name: object) -> bool:
        """Whether there is such an array."""
        self.seen |= {one for one in self._names if one == name}
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        """All names."""
        self.seen |= set(self._names)
        return iter(self._names)

    def __len__(self) -> int:
        """How many there are."""
        self.seen |= set(self._names)
        return len(self._names)

    def __getitem__(self, name: str) -> Any:
        """Never an array: its rows are read with the edges."""
        if name not in self:
            raise KeyError(name)
        raise TypeError(
            f"edge_data[{name!r}] has no rows here, where edges are read piece by piece: a layer reads "
            "them in its messages, `block.reduce(lambda dst, src, edge: ...)`"
        )


def check_reduce(block: Any, reduction: Any, dst: PyTree, own: PyTree, src: PyTree = None) -> None:
    """Raise TypeError or ValueError for what no `reduce` can read.

    >>> from jsage.blocks import Tree
    >>> import jax.numpy as jnp
    >>> check_reduce(Tree(jnp.array([[True]])), SUM, jnp.ones((2, 3)), None)
    Traceback (most recent call last):
    ValueError: dst must have one row a destination, 1, got [2]: pass block.own(h), or what was ...
    """
    if not isinstance(reduction, Reduction):
        raise TypeError(f"reduction must be a Reduction such as jsage.blocks.SUM, got {reduction!r}")
    if any(map(is_sparse, jax.tree.leaves((dst, src, own), is_leaf=is_sparse))):
        raise TypeError(SPARSE_ROWS)
    for name, tree in ("dst", dst), ("own", own):
        for rows in {x.shape[:1] for x in jax.tree.leaves(tree)} - {(block.num_dst,)}:
            raise ValueError(
                f"{name} must have one row a destination, {block.num_dst}, got {list(rows)}: "
                "pass block.own(h), or what was computed of it"
            )


def plain_reduction(
    block: Any, message: MessageFn, reduction: Reduction, dst: PyTree, src: PyTree, own: PyTree
) -> Any:
    """The block's `sum` or `max` where that is what `reduce` is asked for, else None.

    Raises TypeError or ValueError for what no `reduce` can read.

    >>> from jsage.blocks import Tree
    >>> import jax.numpy as jnp
    >>> block, rows = Tree(jnp.array([[True]])), jnp.ones((2, 3))
    >>> plain_reduction(block, weighted_source, SUM, None, rows, None) == block.sum
    True
    """
    check_reduce(block, reduction, dst, own, src)
    if message is not weighted_source or own is not None or getattr(src, "ndim", None) != 2:
        return None
    return block.sum if reduction is SUM else block.max if reduction is MAX else None


def few_rows(num_src: Size, num_dst: Size) -> bool:
    """Whether a table is small beside the destinations; a size that is a symbol is taken to be large.

    >>> few_rows(8, 2), few_rows(9, 2)
    (True, False)
    """
    return isinstance(num_src, int) and num_src <= 4 * num_dst
