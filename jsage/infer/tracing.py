"""A layer seen from outside: what it sends along the edges, and what it makes of the answers.

A layer is called twice. Once on any nodes' own rows, to learn which rows it sends and how they are reduced:
`heard`. And once on the destinations' own rows, with the reduced rows given: `answered`. What happens in
between, in which order and in how many pieces, is not the layer's business; so every aggregator and option
of `jsage.nn` runs over whole neighbourhoods of any size.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jsage._internal.arrays import wide
from jsage.typing import EdgeData

Rows: TypeAlias = Float[Array, "rows d"]
Live: TypeAlias = Bool[Array, " rows"]
State: TypeAlias = Any


class Fold(NamedTuple):
    """How the rows that a node reads are reduced, in the order of its edges."""

    start: Callable[[int, int], State]
    """The state of so many nodes that have read nothing of rows that are so wide."""
    step: Callable[[State, Rows, Live], State]
    """Each node reads one row, or none where it is not live."""
    many: Callable[[State, Rows, Live], State]
    """One node reads many rows."""
    by_column: bool
    """Whether each column is reduced by itself, so that zeros beside a row do no harm."""


class Exchange:
    """A block of destinations whose neighbours are elsewhere; `h` holds the destinations' own rows."""

    def __init__(self, degree: Int[Array, " num_dst"], answers: list[State] | None = None):
        self.degree = degree
        self.edge_data: EdgeData = {}
        self.asked: list[tuple[Fold, Array]] = []
        """Each reduction that the layer asked for, and the rows that it sent into it."""
        self._answers: Iterator[State] | None = None if answers is None else iter(answers)

    @property
    def num_dst(self) -> int:
        """The number of destinations."""
        return self.degree.shape[0]

    def own(self, h: Rows) -> Rows:
        """`h` itself."""
        return h

    def sum(self, h: Rows) -> Rows:
        """The sum over each destination's neighbours."""
        return self._ask(h, _sum(h))[:, : h.shape[1]].astype(h.dtype)

    def max(self, h: Rows) -> Rows:
        """The maximum over each destination's neighbours, 0 where there are none."""
        top = self._ask(h, _max(h))[:, : h.shape[1]]
        return jnp.where(self.degree[:, None] > 0, top, 0)

    def fold(
        self, h: Rows, start: Callable[[int], State], step: Callable[[State, Rows, Live], State]
    ) -> State:
        """The state after each destination has read its neighbours one by one."""

        def many(state: State, rows: Rows, live: Live) -> State:
            def one(i: Array, state: State) -> State:
                cut = jax.lax.dynamic_slice_in_dim
                return step(state, cut(rows, i, 1), cut(live, i, 1))

            return jax.lax.fori_loop(0, live.sum(), one, state)

        return self._ask(h, Fold(lambda num, width: start(num), step, many, by_column=False))

    def degrees(self) -> Int[Array, " num_dst"]:
        """The number of edges into each destination."""
        return self.degree

    def slots(self, h: Rows) -> Any:
        """Not to be had: raises TypeError."""
        raise TypeError(
            "slots need a [num_dst, max degree, d] array, which exact inference never makes: "
            "an aggregator over ordered slots calls block.fold(h, start, step) where the block is a Folds"
        )

    def sources(self, h: Rows) -> tuple[Rows, "Exchange"]:
        """`h` itself: each node's row is transformed once, by whoever owns it."""
        return h, self

    def read(self, live: Live, num_src: int) -> Bool[Array, " num_src"]:
        """Every row."""
        return jnp.ones(num_src, bool)

    def _ask(self, h: Rows, fold: Fold) -> State:
        self.asked.append((fold, h))
        return fold.start(self.num_dst, h.shape[1]) if self._answers is None else next(self._answers)


Apply: TypeAlias = Callable[[Array, Exchange], Array]
"""A layer: `(own rows, block) -> rows`."""


def heard(apply: Apply, rows: Rows) -> list[tuple[Fold, Array]]:
    """What a layer sends of these nodes' rows, and how it is to be reduced.

    >>> import jax.numpy as jnp
    >>> [(fold, sent)] = heard(lambda h, block: h + block.sum(2 * h), jnp.ones((1, 2)))
    >>> sent
    Array([[2., 2.]], dtype=float32)
    """
    block = Exchange(jnp.ones(rows.shape[0], jnp.int32))
    apply(rows, block)
    return block.asked


def answered(
    apply: Apply, own: Rows, degree: Int[Array, " rows"], answers: list[State]
) -> Float[Array, "rows d_out"]:
    """A layer's result, from nodes' own rows and the final states of what it asked for.

    >>> import jax.numpy as jnp
    >>> layer = lambda h, block: h + block.sum(2 * h)
    >>> answered(layer, jnp.ones((1, 2)), jnp.array([3]), [jnp.full((1, 2), 6.0)])
    Array([[7., 7.]], dtype=float32)
    """
    return apply(own, Exchange(degree, answers))


def _sum(h: Rows) -> Fold:
    dtype = wide(h)

    def step(total: State, rows: Rows, live: Live) -> State:
        return total + jnp.where(live[:, None], rows, 0).astype(dtype)

    def many(total: State, rows: Rows, live: Live) -> State:
        return total + jnp.where(live[:, None], rows, 0).sum(0, dtype=dtype, keepdims=True)

    return Fold(lambda num, width: jnp.zeros((num, width), dtype), step, many, by_column=True)


def _max(h: Rows) -> Fold:
    def step(top: State, rows: Rows, live: Live) -> State:
        return jnp.maximum(top, jnp.where(live[:, None], rows, -jnp.inf))

    def many(top: State, rows: Rows, live: Live) -> State:
        return jnp.maximum(top, jnp.where(live[:, None], rows, -jnp.inf).max(0, keepdims=True))

    return Fold(lambda num, width: jnp.full((num, width), -jnp.inf, h.dtype), step, many, by_column=True)
