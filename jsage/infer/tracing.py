"""A layer seen from outside: what it sends along the edges, and what it makes of the answers.

A layer is called twice. Once on any nodes' own rows, to learn which rows it sends and how they are reduced:
`trace_reductions`. And once on the destinations' own rows, with the reduced rows given: `apply_reduced`. What
happens in between, in which order and in how many pieces, is not the layer's business; so every convolution
runs over whole neighborhoods of any size.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jsage.blocks.layout import Size, few_rows
from jsage.blocks.reductions import MAX, SUM, Asked, Reduction, State, finished, weighted_source
from jsage.typing import EdgeData, MessageFn

Rows: TypeAlias = Float[Array, "rows d"]


class TracingBlock:
    """A block of destinations whose neighbors are elsewhere; rows are those of the destinations.

    `edge_data` is read for shapes and dtypes alone.
    """

    def __init__(
        self,
        degree: Int[Array, " num_dst"],
        edge_data: Mapping[str, Any] = {},
        answers: list[State] | None = None,
        again: bool = True,
    ):
        self.degree = degree
        self.edge_data: EdgeData = {}
        self.asked: list[Asked] = []
        """Each reduction that the layer asked for, and the rows that it sent into it."""
        self._like, self._again = edge_data, again
        self._answers: Iterator[State] | None = None if answers is None else iter(answers)

    @property
    def num_dst(self) -> int:
        """The number of destinations."""
        return self.degree.shape[0]

    def own(self, h: PyTree) -> PyTree:
        """`h` itself."""
        return h

    def sum(self, h: Rows) -> Rows:
        """The sum over each destination's neighbors."""
        return self.reduce(weighted_source, SUM, None, h)

    def max(self, h: Rows) -> Rows:
        """The maximum over each destination's neighbors, 0 where there are none."""
        return self.reduce(weighted_source, MAX, None, h)

    def reduce(
        self, message: MessageFn, reduction: Reduction, dst: PyTree, src: PyTree, own: PyTree = None
    ) -> PyTree:
        """Ask for a reduction, or give the rows of the one that was answered."""
        asked = Asked(message, reduction, None if message is weighted_source else dst, src)
        self.asked.append(asked)
        like = asked.like(src, self._like, self.num_dst)
        if self._answers is None:
            return finished(reduction, reduction.start(like, self.num_dst), self.degree, like, own)
        state = next(self._answers)
        state = state[:, : src.shape[1]] if asked.plain else state  # rows may have been padded
        return finished(reduction, state, self.degree, like, own)

    def by_slot(self, num_src: Size) -> bool:
        """Never: rows are transformed where they are."""
        return False

    def reads_again(self, num_src: Size) -> bool:
        """Whether each row is transformed once for all that read it."""
        return self._again and few_rows(num_src, self.num_dst)

    def degrees(self) -> Int[Array, " num_dst"]:
        """The number of edges into each destination."""
        return self.degree

    def sources(self, h: PyTree) -> tuple[PyTree, "TracingBlock"]:
        """`h` itself: each node's row is transformed once, by whoever owns it."""
        return h, self

    def read(self, valid: Bool[Array, " rows"], num_src: int) -> Bool[Array, " num_src"]:
        """Every row."""
        return jnp.ones(num_src, bool)


Apply: TypeAlias = Callable[[Array, TracingBlock], Array]
"""A layer: `(own rows, block) -> rows`."""


def trace_reductions(
    apply: Apply,
    rows: Rows,
    edge_data: Mapping[str, Any] = {},
    again: bool = True,
) -> list[Asked]:
    """What a layer sends of these nodes' rows, and how it is to be reduced.

    `edge_data` gives the shapes of what messages read of edges; without `again`, rows are not sent again and
    again, so to transform them before they are sent is no gain.

    >>> import jax.numpy as jnp
    >>> [asked] = trace_reductions(lambda h, block: h + block.sum(2 * h), jnp.ones((1, 2)))
    >>> asked.src
    Array([[2., 2.]], dtype=float32)
    """
    block = TracingBlock(jnp.ones(rows.shape[0], jnp.int32), edge_data, again=again)
    apply(rows, block)
    return block.asked


def apply_reduced(apply: Apply, own: Rows, block: TracingBlock) -> Float[Array, "rows d_out"]:
    """A layer's result, from nodes' own rows and a block that holds the final states of what it asked for.

    >>> import jax.numpy as jnp
    >>> layer = lambda h, block: h + block.sum(2 * h)
    >>> apply_reduced(layer, jnp.ones((1, 2)), TracingBlock(jnp.array([3]), answers=[jnp.full((1, 2), 6.0)]))
    Array([[7., 7.]], dtype=float32)
    """
    return apply(own, block)


def names_read(apply: Apply, rows: Rows, edge_data: EdgeData) -> list[str]:
    """Which arrays of `edge_data` a layer's messages read.

    >>> edge = {"age": jnp.ones(1), "weight": jnp.ones(1)}
    >>> names_read(lambda h, block: block.sum(h), jnp.ones((1, 2)), edge)
    ['weight']
    """
    found: set[str] = set()
    for asked in trace_reductions(apply, rows, edge_data):

        def brings(data: EdgeData, asked: Asked = asked) -> Any:
            return asked.message(asked.dst, asked.src, data)

        given = {name: jnp.zeros((rows.shape[0], *x.shape[1:]), x.dtype) for name, x in edge_data.items()}
        program = jax.make_jaxpr(brings)(given).jaxpr
        used = {id(x) for eqn in program.eqns for x in eqn.invars} | {id(x) for x in program.outvars}
        found |= {name for name, x in zip(sorted(given), program.invars, strict=True) if id(x) in used}
    return sorted(found)
