"""The layouts of one hop, and how each gathers and reduces.

A block joins destinations to the sources that they read: up to `fanout` neighbor slots a destination,
and a mask of the valid ones. `h` holds one row a source. All layouts answer the calls of `Block`. An
`edge_data["weight"]` (one number a slot) multiplies the neighbors' rows in all of them. A padded slot
points at its own destination and is never read.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Num, PyTree

from jsage._internal.arrays import accumulator_dtype, aligned, take
from jsage.blocks.chunked import add_at, cut_rows, reduce_in_order
from jsage.blocks.gather import gather_max, gather_sum, messages, segment_max, slot_max
from jsage.blocks.layout import Block, Size, few_rows, plain_reduction
from jsage.blocks.reductions import Reduction, apart, checked, column, filled
from jsage.blocks.slotwise import add_rows, reduce_list, reduce_slots, slot_major
from jsage.graph.sparse import is_sparse, map_rows, only_rows, rows_at
from jsage.typing import EdgeData, HostArray, MessageFn

Ends: TypeAlias = Int[Array, " num_edges"]
Rows: TypeAlias = Num[HostArray, "num_src *d"]
Sources: TypeAlias = Num[Array, "rows *d"]
Pooled: TypeAlias = Num[Array, "num_dst *d"]


class Tree(NamedTuple):
    """Sources are the destinations followed by every slot, in order: reading neighbors is a reshape.

    >>> import jax.numpy as jnp
    >>> block = Tree(mask=jnp.array([[True, True], [True, False]]))
    >>> h = jnp.array([[1.0], [2.0], [10.0], [20.0], [30.0], [40.0]])
    >>> block.own(h).ravel(), block.sum(h).ravel()
    (Array([1., 2.], dtype=float32), Array([30., 30.], dtype=float32))
    """

    mask: Bool[Array, "num_dst fanout"]
    edge_data: EdgeData = {}

    @property
    def num_dst(self) -> int:
        """The number of destinations."""
        return self.mask.shape[0]

    def own(self, h: Any) -> Any:
        """The first `num_dst` rows."""
        return map_rows(lambda x: jnp.asarray(x)[: self.num_dst], h)

    def sum(self, h: Rows) -> Pooled:
        """The sum over valid slots."""
        return self._messages(h).sum(1, dtype=accumulator_dtype(h)).astype(h.dtype)

    def max(self, h: Rows) -> Pooled:
        """The maximum over valid slots."""
        if "weight" not in self.edge_data:
            self._check(h)
            return slot_max(*aligned(self.slot_rows(h), self.mask))
        return slot_max(*aligned(self._messages(h), self.mask))

    def reduce(
        self, message: MessageFn, reduction: Reduction, dst: PyTree, src: PyTree, own: PyTree = None
    ) -> PyTree:
        """Messages reduced, a slot at a time; plain sums and maxima as `sum` and `max`."""
        self._check(src)
        if (plain := plain_reduction(self, message, reduction, dst, src, own)) is not None:
            return plain(src)
        if reduction.gradient is None:
            return reduce_in_order(message, reduction, (dst, src, own), self)
        src = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), self.slot_rows(src))
        slots = slot_major(self.mask, self.edge_data, None)
        return reduce_slots(message, reduction, slots, dst, src, own)

    def slot_rows(self, h: PyTree) -> PyTree:
        """Every slot's rows, `[num_dst, fanout, ...]`: a reshape."""
        return jax.tree.map(lambda x: x[self.num_dst :].reshape(*self.mask.shape, *x.shape[1:]), h)

    def cut(self, h: PyTree, at: Any, size: int) -> tuple[PyTree, "Tree"]:
        """The rows that `size` destinations from `at` on read, and the tree over them."""
        num_dst, fanout = self.mask.shape
        own, slots = cut_rows(h, at, size), cut_rows(h, num_dst + at * fanout, size * fanout)
        return jax.tree.map(lambda *x: jnp.concatenate(x), own, slots), cut_rows(self, at, size)

    def add_cut(self, d_h: PyTree, at: Any, d_rows: PyTree) -> PyTree:
        """Add cotangents of the rows of `cut` to those of `h`."""
        num_dst, fanout = self.mask.shape

        def add(total: Array, rows: Array) -> Array:
            size = rows.shape[0] // (1 + fanout)
            return add_at(add_at(total, at, rows[:size]), num_dst + at * fanout, rows[size:])

        return jax.tree.map(add, d_h, d_rows)

    def by_slot(self, num_src: Size) -> bool:
        """Always: the rows are the slots."""
        return True

    def reads_again(self, num_src: Size) -> bool:
        """Never: each row is a slot of its own."""
        return False

    def degrees(self) -> Int[Array, " num_dst"]:
        """The number of valid slots."""
        return self.mask.sum(1, dtype=jnp.int32)

    def sources(self, h: Any) -> tuple[Any, "Tree"]:
        """The rows themselves, with 0 in the padded ones."""
        self._check(h)
        return _only_read(self, h), self

    def read(self, valid: Bool[Array, " num_dst"], num_src: int) -> Bool[Array, " num_src"]:
        """Valid destinations and their valid slots."""
        return jnp.concatenate([valid, (self.mask & valid[:, None]).ravel()])

    def _messages(self, h: Rows) -> Num[Array, "num_dst fanout d"]:
        self._check(h)
        return messages(self.slot_rows(h), self.mask, self.edge_data.get("weight"))

    def _check(self, h: PyTree) -> None:
        num_dst, fanout = self.mask.shape
        for rows in {x.shape[0] for x in jax.tree.leaves(h, is_leaf=is_sparse)} - {num_dst * (1 + fanout)}:
            raise ValueError(
                f"a tree block of {num_dst} destinations x {fanout} slots reads {num_dst * (1 + fanout)} "
                f"rows (destinations first, then every slot), got {rows}: pass what the last layer gave"
            )


class Indexed(NamedTuple):
    """Explicit positions in `h`: the feature table itself (positions are node ids) or a compacted frontier.

    >>> import jax.numpy as jnp
    >>> mask = jnp.array([[True, True], [True, False]])
    >>> block = Indexed(jnp.array([3, 0]), jnp.array([[1, 2], [1, 0]]), mask)
    >>> h = jnp.array([[1.0], [2.0], [3.0], [4.0]])
    >>> block.own(h).ravel(), block.sum(h).ravel(), block.max(h).ravel()
    (Array([4., 1.], dtype=float32), Array([5., 2.], dtype=float32), Array([3., 2.], dtype=float32))
    """

    dst: Int[Array, " num_dst"]
    src: Int[Array, "num_dst fanout"]
    mask: Bool[Array, "num_dst fanout"]
    edge_data: EdgeData = {}

    @property
    def num_dst(self) -> int:
        """The number of destinations."""
        return self.dst.shape[0]

    def own(self, h: Any) -> Any:
        """`h[dst]`."""
        return rows_at(h, self.dst)

    def sum(self, h: Rows) -> Pooled:
        """The sum over valid slots, one slot at a time: no `[num_dst, fanout, d]` array."""
        return gather_sum(*aligned(h, self.src, self.mask, self.edge_data.get("weight")))

    def max(self, h: Rows) -> Pooled:
        """The maximum over valid slots, one slot at a time."""
        return gather_max(*aligned(h, self.src, self.mask, self.edge_data.get("weight")))

    def reduce(
        self, message: MessageFn, reduction: Reduction, dst: PyTree, src: PyTree, own: PyTree = None
    ) -> PyTree:
        """Messages reduced, a slot at a time; plain sums and maxima as `sum` and `max`."""
        if (plain := plain_reduction(self, message, reduction, dst, src, own)) is not None:
            return plain(src)
        if reduction.gradient is None:
            return reduce_in_order(message, reduction, (dst, src, own), self)
        slots = slot_major(self.mask, self.edge_data, self.src)
        return reduce_slots(message, reduction, slots, dst, src, own)

    def slot_rows(self, h: PyTree) -> PyTree:
        """Every slot's rows, `[num_dst, fanout, ...]`: copies."""
        return jax.tree.map(lambda x: take(x, self.src), h)

    def cut(self, h: PyTree, at: Any, size: int) -> tuple[PyTree, Tree]:
        """The rows that `size` destinations from `at` on read, and the tree over them."""
        ids, tree = as_tree(cut_rows(self, at, size))
        # Times 1: a matmul in bfloat16 behind a mere copy would have XLA convert the whole table beforehand.
        valid = tree.read(jnp.ones(size, bool), ids.size)
        return jax.tree.map(lambda x: take(x, ids) * column(valid, x).astype(x.dtype), h), tree

    def add_cut(self, d_h: PyTree, at: Any, d_rows: PyTree) -> PyTree:
        """Add cotangents of the rows of `cut` to those of `h`."""
        fanout = self.mask.shape[1]
        size = jax.tree.leaves(d_rows)[0].shape[0] // (1 + fanout)
        ids, _ = as_tree(cut_rows(self, at, size))
        return add_rows(d_h, d_rows, ids)

    def by_slot(self, num_src: Size) -> bool:
        """Where the table is larger than what is read of it; a size that is a symbol is taken to be."""
        return not isinstance(num_src, int) or num_src > self.dst.size + self.src.size

    def reads_again(self, num_src: Size) -> bool:
        """Where the table is small beside the destinations."""
        return few_rows(num_src, self.num_dst)

    def degrees(self) -> Int[Array, " num_dst"]:
        """The number of valid slots."""
        return self.mask.sum(1, dtype=jnp.int32)

    def sources(self, h: Any) -> tuple[Any, "Block"]:
        """`h` with 0 in the rows that are not read, or a copy of those that are where `h` is larger."""
        if isinstance(h.shape[0], int) and h.shape[0] <= self.dst.size + self.src.size:
            return _only_read(self, h), self  # a size that is a symbol (jax.export) is taken to be large
        ids, tree = as_tree(self)
        rows, _ = tree.sources(rows_at(h, ids))
        return rows, tree

    def read(self, valid: Bool[Array, " num_dst"], num_src: int) -> Bool[Array, " num_src"]:
        """The rows at valid destinations' own positions and at their valid slots."""
        slots = self.mask & valid[:, None]
        return jnp.zeros(num_src, bool).at[self.dst].max(valid).at[self.src].max(slots)


class Segments(NamedTuple):
    """An edge list: `h[src]` reduced over `dst` by `jax.ops.segment_sum` and `segment_max`.

    Padding carries `dst == num_dst`, which segment operations drop. `own` holds the positions of the
    destinations' own rows (None: the first `num_dst`); `order[v]` the edges of destination `v`, -1 in the
    padding (None: reductions whose order counts are not available).

    >>> import jax.numpy as jnp
    >>> block = edge_list(jnp.array([0, 1, 2]), jnp.array([1, 1, 0]), num_dst=3)
    >>> block.sum(jnp.array([[1.0], [2.0], [3.0]])).ravel()
    Array([3., 3., 0.], dtype=float32)
    """

    src: Ends
    dst: Ends
    degree: Int[Array, " num_dst"]
    edge_data: EdgeData = {}
    position: Int[Array, " num_dst"] | None = None
    order: Int[Array, "num_dst width"] | None = None

    @property
    def num_dst(self) -> int:
        """The number of destinations."""
        return self.degree.shape[0]

    def own(self, h: Any) -> Any:
        """The destinations' own rows."""
        first = lambda x: jnp.asarray(x)[: self.num_dst]  # noqa: E731
        return map_rows(first, h) if self.position is None else rows_at(h, self.position)

    def sum(self, h: Rows) -> Pooled:
        """`segment_sum` of the messages, in float32 at least."""
        return jax.ops.segment_sum(self._messages(h), self.dst, self.num_dst).astype(h.dtype)

    def max(self, h: Rows) -> Pooled:
        """`segment_max` of the messages, 0 where there are none."""
        return segment_max(*aligned(self._messages(h), self.dst, self.degree)).astype(h.dtype)

    def reduce(
        self, message: MessageFn, reduction: Reduction, dst: PyTree, src: PyTree, own: PyTree = None
    ) -> PyTree:
        """All edges' messages, reduced by segment operations; plain sums and maxima as `sum` and `max`."""
        if (plain := plain_reduction(self, message, reduction, dst, src, own)) is not None:
            return plain(src)
        if (reduction.scatter or reduction.join) is None:
            return self.in_order().reduce(message, reduction, dst, src, own)
        valid, at = self.dst < self.num_dst, jnp.minimum(self.dst, self.num_dst - 1)
        rows = jax.tree.map(lambda x: take(x, at), dst), jax.tree.map(lambda x: take(x, self.src), src)
        sent = apart(message, valid.any())(*filled(valid, (*rows, dict(self.edge_data))))
        checked(sent, self.dst.shape[0])
        return reduce_list(reduction, sent, self.dst, self.degree, own)

    def in_order(self) -> Indexed:
        """The same edges as a table of slots, each destination's in their order; needs `order`."""
        if self.order is None:
            raise TypeError(
                "slots need each destination's edges in order, and this edge list has no `order` table: "
                "build it by full_block(graph, slots=True)"
            )
        own = jnp.arange(self.num_dst, dtype=self.src.dtype) if self.position is None else self.position
        mask, order = self.order >= 0, self.order
        rows = lambda x: jnp.pad(x, [(0, 1)] + [(0, 0)] * (x.ndim - 1))[order]  # noqa: E731  -1 reads zeros
        src = jnp.where(mask, rows(self.src), own[:, None])
        return Indexed(own, src, mask, {name: rows(x) for name, x in self.edge_data.items()})

    def by_slot(self, num_src: Size) -> bool:
        """Never: rows are read where they are."""
        return False

    def reads_again(self, num_src: Size) -> bool:
        """Where the table is small beside the destinations."""
        return few_rows(num_src, self.num_dst)

    def degrees(self) -> Int[Array, " num_dst"]:
        """The number of valid edges into each destination."""
        return self.degree

    def sources(self, h: Any) -> tuple[Any, "Segments"]:
        """`h` with 0 in the rows that are not read."""
        return _only_read(self, h), self

    def read(self, valid: Bool[Array, " num_dst"], num_src: int) -> Bool[Array, " num_src"]:
        """The rows at valid destinations' own positions and at the sources of their edges."""
        own = jnp.arange(self.num_dst) if self.position is None else self.position
        edges = valid.at[self.dst].get(mode="fill", fill_value=False)
        return jnp.zeros(num_src, bool).at[own].max(valid).at[self.src].max(edges)

    def _messages(self, h: Rows) -> Num[Array, "num_edges d"]:
        """Every edge's row times its weight, in float32 at least; so its gradient is summed in that too."""
        h = h.astype(accumulator_dtype(h))
        return messages(take(h, self.src), self.dst < self.num_dst, self.edge_data.get("weight"))


def edge_list(src: Ends, dst: Ends, num_dst: int, edge_data: EdgeData | None = None) -> Segments:
    """A block from edges `src -> dst`; those with `dst == num_dst` are padding.

    >>> import jax.numpy as jnp
    >>> edge_list(jnp.array([0, 1, 1]), jnp.array([1, 0, 2]), num_dst=2).degrees()
    Array([1, 1], dtype=int32)
    """
    degree = jax.ops.segment_sum(jnp.ones_like(dst), dst, num_dst)
    return Segments(src, dst, degree, edge_data or {})


def as_tree(block: Indexed) -> tuple[Int[Array, " num_src"], Tree]:
    """The positions that a block reads, copied slot by slot, and the tree over them.

    `tree` on `h[ids]` gives what `block` gives on `h`: for features that are fetched, not indexed.

    >>> import jax.numpy as jnp
    >>> ids, tree = as_tree(Indexed(jnp.array([5]), jnp.array([[7, 9]]), jnp.array([[True, True]])))
    >>> ids
    Array([5, 7, 9], dtype=int32)
    """
    return jnp.concatenate([block.dst, block.src.ravel()]), Tree(block.mask, block.edge_data)


def read_tables(tables: PyTree, block: Block) -> tuple[Any, Block]:
    """What a block reads of each table, and the block over that; one without ids reads tables as they are.

    >>> block = Indexed(jnp.array([2]), jnp.array([[0]]), jnp.array([[True]]))
    >>> read_tables(jnp.array([1.0, 2.0, 4.0]), block)[0]
    Array([4., 1.], dtype=float32)
    """
    if not isinstance(block, Indexed):
        return tables, block
    ids, tree = as_tree(block)
    return jax.tree.map(lambda x: rows_at(x, ids), tables, is_leaf=is_sparse), tree


def block_ids(block: Block) -> Ends | None:
    """The ids that a block reads a table at, destinations first; None where it reads rows in its own order.

    >>> block_ids(Indexed(jnp.array([2]), jnp.array([[0]]), jnp.array([[True]])))
    Array([2, 0], dtype=int32)
    """
    return as_tree(block)[0] if isinstance(block, Indexed) else None


def with_ids(block: Any, ids: Ends) -> Any:
    """The same slots over other ids, in the order of `block_ids`.

    >>> block = Indexed(jnp.array([2]), jnp.array([[0]]), jnp.array([[True]]))
    >>> with_ids(block, jnp.array([5, 6])).dst
    Array([5], dtype=int32)
    """
    return block._replace(dst=ids[: block.num_dst], src=ids[block.num_dst :].reshape(block.src.shape))


def slot_owners(owner: Int[Array, " num_dst"], block: Block) -> Int[Array, " num_src"] | None:
    """For each place that a sampled block reads, the destinations first, whose it is; None for other blocks.

    >>> slot_owners(jnp.array([7, 8]), Tree(jnp.array([[True], [True]])))
    Array([7, 8, 7, 8], dtype=int32)
    """
    if not isinstance(block, Tree | Indexed):
        return None
    return jnp.concatenate([owner, jnp.repeat(owner, block.mask.shape[1])])


def as_segments(block: Tree | Indexed) -> Segments:
    """A sampled block as flat padded index arrays, for code written with segment operations.

    >>> import jax, jax.numpy as jnp
    >>> block = as_segments(Tree(mask=jnp.array([[True, True], [True, False]])))
    >>> block.src, block.dst
    (Array([2, 3, 4, 5], dtype=int32), Array([0, 0, 1, 2], dtype=int32))
    >>> h = jnp.array([[1.0], [2.0], [10.0], [20.0], [30.0], [40.0]])
    >>> jax.ops.segment_sum(h[block.src], block.dst, 2).ravel()
    Array([30., 30.], dtype=float32)
    """
    num_dst, fanout = block.mask.shape
    slot = jnp.arange(num_dst * fanout, dtype=jnp.int32).reshape(num_dst, fanout)
    dst = jnp.where(block.mask, slot // fanout, num_dst).ravel()
    flat = {name: v.reshape(slot.size, *v.shape[2:]) for name, v in block.edge_data.items()}
    position, src = (block.dst, block.src) if isinstance(block, Indexed) else (None, num_dst + slot)
    return Segments(src.ravel(), dst, block.degrees(), flat, position, jnp.where(block.mask, slot, -1))


def _only_read(block: Block, h: Any) -> Any:
    valid = block.read(jnp.ones(block.num_dst, bool), h.shape[0])
    return only_rows(valid, h)
