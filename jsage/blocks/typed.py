"""One hop of a graph with types: a block a relation, over the rows of its source type."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Int

from jsage.blocks.block import Segments, Tree
from jsage.blocks.layout import Block
from jsage.blocks.own_rows import OwnRows
from jsage.typing import EdgeType


@runtime_checkable
class TypedBlock(Protocol):
    """What both layouts of a typed hop answer."""

    @property
    def relations(self) -> list[EdgeType]:
        """The relations that are joined, sorted."""
        ...

    def types(self, h: Mapping[str, Any]) -> list[str]:
        """The types that have destinations, sorted."""
        ...

    def own(self, h: Mapping[str, Any], node_type: str) -> Any:
        """The destinations' own rows, of a type."""
        ...

    def join(self, h: Mapping[str, Any], relation: EdgeType) -> tuple[Any, Block]:
        """Rows that hold a relation's sources, and the block of its destinations over them."""
        ...


class TypedTree(NamedTuple):
    """A sampled hop: rows of a type are its destinations, then each relation's slots, relations sorted.

    So a relation reads a slice of its source type's rows, at a place that follows from shapes.

    >>> relation, tree = ("a", "to", "b"), Tree(jnp.array([[True]]))
    >>> hop = TypedTree({"a": jnp.arange(1), "b": jnp.arange(1)}, {relation: tree})
    >>> rows, block = hop.join({"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[5.0, 6.0]])}, relation)
    >>> block.sum(rows), block.own(rows)
    (Array([[2.]], dtype=float32), Array([[5., 6.]], dtype=float32))
    """

    dst: Mapping[str, Int[Array, " num_dst"]]
    """The ids of the destinations, a type."""
    blocks: Mapping[EdgeType, Tree]

    @property
    def relations(self) -> list[EdgeType]:
        """The relations that are joined, sorted."""
        return sorted(self.blocks)

    def types(self, h: Mapping[str, Any]) -> list[str]:
        """The types that have destinations, sorted."""
        return sorted(self.dst)

    def own(self, h: Mapping[str, Any], node_type: str) -> Any:
        """The first rows of a type."""
        return h[node_type][: self.dst[node_type].shape[0]]

    def join(self, h: Mapping[str, Any], relation: EdgeType) -> tuple[Any, Block]:
        """A slice of the source type's rows behind room for the destinations', and the tree over them."""
        (source, _, target), tree = relation, self.blocks[relation]
        start = dict(self._starts())[relation]
        slots, own = h[source][start : start + tree.mask.size], self.own(h, target)
        if source == target:
            return jnp.concatenate([own, slots]), tree
        room = jnp.zeros((tree.num_dst, *slots.shape[1:]), slots.dtype)
        return jnp.concatenate([room, slots]), OwnRows(tree, own)

    def _starts(self) -> Iterator[tuple[EdgeType, int]]:
        end = {name: ids.shape[0] for name, ids in self.dst.items()}
        for relation in self.relations:
            start = end.get(relation[0], 0)
            yield relation, start
            end[relation[0]] = start + self.blocks[relation].mask.size


class TypedEdges(NamedTuple):
    """All edges of a graph with types: rows of a type are its nodes.

    >>> from jsage.blocks import edge_list
    >>> edges = edge_list(jnp.array([0, 1]), jnp.array([0, 0]), num_dst=1)
    >>> hop = TypedEdges({("a", "to", "b"): edges})
    >>> rows, block = hop.join({"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[5.0]])}, ("a", "to", "b"))
    >>> block.sum(rows), block.own(rows)
    (Array([[3.]], dtype=float32), Array([[5.]], dtype=float32))
    """

    blocks: Mapping[EdgeType, Segments]

    @property
    def relations(self) -> list[EdgeType]:
        """The relations, sorted."""
        return sorted(self.blocks)

    def types(self, h: Mapping[str, Any]) -> list[str]:
        """All types, sorted."""
        return sorted(h)

    def own(self, h: Mapping[str, Any], node_type: str) -> Any:
        """All rows of a type."""
        return h[node_type]

    def join(self, h: Mapping[str, Any], relation: EdgeType) -> tuple[Any, Block]:
        """The source type's rows, and the edges over them."""
        (source, _, target), block = relation, self.blocks[relation]
        rows = h[source]
        if rows.shape[0] == 0:  # a row to point at, which nothing reads
            rows = jnp.zeros((1, *rows.shape[1:]), rows.dtype)
        return rows, block if source == target else OwnRows(block, h[target])
