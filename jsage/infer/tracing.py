"""A layer seen from outside: what it sends along the edges, and what it makes of the answers.

A layer is called on any nodes' own rows, to learn which rows it sends and how they are reduced:
`trace_reductions`. And on the destinations' own rows, with the reduced rows given: `apply_reduced`. What
happens in between, in which order and in how many pieces, is not the layer's business; so every convolution
runs over whole neighborhoods of any size. Where the destinations' rows for one reduction (`dst`) depend on
the result of another, the edges are read once for each of the levels that `trace_levels` finds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jsage._internal.versions import get_opaque_trace_state
from jsage.blocks.layout import EdgeNames, Size, check_reduce, few_rows
from jsage.blocks.reductions import (
    MAX,
    SOFTMAX_SUM,
    SUM,
    Asked,
    Reduction,
    State,
    finished,
    some_rows,
    weighted_source,
)
from jsage.blocks.slotwise import hoist
from jsage.typing import EdgeData, MessageFn

Rows: TypeAlias = Any
"""`Float[Array, "rows d"]`, or `SparseRows`."""

INSIDE = (
    "exact inference looks into a layer, whose edges are elsewhere, so no transformation (jit, remat, "
    "checkpoint, vmap, grad, scan) may stand between the two: wrap functions of rows inside the layer, not "
    "what is called with its block"
)


CALLS = ("jit", "remat2", "checkpoint")
"""Primitives whose inputs and outputs are those of the jaxpr within."""


class TracingBlock:
    """A block of destinations whose neighbors are elsewhere; rows are those of the destinations.

    `edge_data` is read for shapes and dtypes alone; answers that are None are not known yet.
    """

    def __init__(
        self,
        degree: Int[Array, " num_dst"],
        edge_data: Mapping[str, Any] = {},
        answers: Sequence[State | None] | None = None,
        again: bool = True,
    ):
        self.edge_data = EdgeNames(edge_data)
        self.asked: list[Asked] = []
        """Each reduction that the layer asked for, and the rows that it sent into it."""
        self.states: list[State] = []
        """What it was answered."""
        self.linked = False
        """Whether something that it asked for might depend on an answer, or a message on rows."""
        self.shapes = edge_data
        self._degree, self._answers, self._again = degree, answers, again
        self._told, self._trace = False, get_opaque_trace_state()

    @property
    def num_dst(self) -> int:
        """The number of destinations."""
        return self._degree.shape[0]

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
        if get_opaque_trace_state() != self._trace:
            raise TypeError(
                f"this layer asks its block for a reduction within a transformation, but {INSIDE}"
            )
        check_reduce(self, reduction, dst, own, src)
        asked = Asked(message, reduction, None if message is weighted_source else dst, src)
        own_code = message is not weighted_source or reduction not in (SUM, MAX, SOFTMAX_SUM)
        self.linked |= own_code or self._told or bool(self.asked)
        like = asked.like(src, self.shapes, self.num_dst)
        answer = None if self._answers is None else self._answers[len(self.asked)]
        state = reduction.start(like, self.num_dst) if answer is None else answer
        state = state[:, : src.shape[1]] if asked.plain else state  # rows may have been padded
        self.asked.append(asked)
        self.states.append(state)
        return finished(reduction, state, self._degree, like, own)

    def by_slot(self, num_src: Size) -> bool:
        """Never: rows are transformed where they are."""
        return False

    def reads_again(self, num_src: Size) -> bool:
        """Whether each row is transformed once for all that read it."""
        return self._again and few_rows(num_src, self.num_dst)

    def degrees(self) -> Int[Array, " num_dst"]:
        """The number of edges into each destination."""
        self._told = True
        return self._degree

    def like(self, degree: Int[Array, " num_dst"], answers: Sequence[State]) -> "TracingBlock":
        """A block that was not asked yet, of other degrees and answers."""
        return TracingBlock(degree, self.shapes, answers, self._again)

    def sources(self, h: PyTree) -> tuple[PyTree, "TracingBlock"]:
        """`h` itself: each node's row is transformed once, by whoever owns it."""
        return h, self

    def read(self, valid: Bool[Array, " rows"], num_src: int) -> Bool[Array, " num_src"]:
        """Every row."""
        return jnp.ones(num_src, bool)


def _refuse(block: Any, *_: Any) -> NoReturn:
    raise TypeError(f"this layer's block went through a transformation, but {INSIDE}")


jax.tree_util.register_pytree_node(TracingBlock, _refuse, _refuse)


Apply: TypeAlias = Callable[[Any, TracingBlock], Array]
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


def trace_levels(apply: Apply, rows: Rows, block: TracingBlock) -> list[int]:
    """Call a layer on destinations' own rows and a block; of each reduction, how many must come before it.

    Raises TypeError where `src` depends on answers, or what a message closes over on answers or on rows.

    >>> import jax.numpy as jnp
    >>> def layer(h, block):
    ...     total = block.sum(h)
    ...     return block.reduce(lambda dst, src, edge: src - dst, SUM, total, h)
    >>> trace_levels(layer, jnp.ones((1, 2)), TracingBlock(jnp.array([3])))
    [0, 1]
    """
    apply(rows, block)
    if not block.linked:
        return [0] * len(block.asked)

    def parts(rows: Rows, degree: Array, states: list[State]) -> list[Any]:
        other = block.like(degree, states)
        apply(rows, other)
        return [(one.src, _closed_over(one, other), one.dst) for one in other.asked]

    program, shapes = jax.make_jaxpr(parts, return_shape=True)(rows, block.degrees(), block.states)
    answers = [i for i, x in enumerate(block.states) for _ in jax.tree.leaves(x)]
    given = ["rows"] * len(jax.tree.leaves(rows)) + ["degrees"] + answers
    outputs = [
        (i, part) for i, three in enumerate(shapes) for part in range(3) for _ in jax.tree.leaves(three[part])
    ]
    levels: list[int] = []
    for i in range(len(shapes)):
        needs = [_inputs_of(program.jaxpr, [here == (i, part) for here in outputs]) for part in range(3)]
        src, closed, dst = ({name for name, used in zip(given, x, strict=True) if used} for x in needs)
        _check(i + 1, src - {"rows"}, closed)
        levels.append(max((levels[j] + 1 for j in dst if isinstance(j, int)), default=0))
    return levels


def _closed_over(asked: Asked, block: TracingBlock) -> list[Array]:
    """The arrays that a message and the steps of its reduction close over."""
    size, reduction = block.num_dst, asked.reduction

    def read(dst: PyTree, src: PyTree, edge: EdgeData, mask: Array, at: Array) -> Any:
        message = asked.message(dst, src, edge)
        state = reduction.start(message, size)
        added = None if reduction.scatter is None else reduction.scatter(state, message, at)
        return reduction.step(state, message, mask), added

    rows = (some_rows(x, size) for x in (asked.dst, asked.src, dict(block.shapes)))
    flags = (jax.ShapeDtypeStruct((size,), dtype) for dtype in (bool, jnp.int32))
    return hoist(read, *rows, *flags)[1]


def _inputs_of(program: Any, wanted: list[bool]) -> list[bool]:
    """Which inputs of a jaxpr these outputs depend on; those of a loop or a branch on all that it reads."""
    found = {id(x) for x, want in zip(program.outvars, wanted, strict=True) if want}
    for step in reversed(program.eqns):
        if any(outputs := [id(x) in found for x in step.outvars]):
            inner = step.params.get("jaxpr") if step.primitive.name in CALLS else None
            inputs = (
                _inputs_of(getattr(inner, "jaxpr", inner), outputs) if inner else [True] * len(step.invars)
            )
            found |= {id(x) for x, used in zip(step.invars, inputs, strict=True) if used}
    return [id(x) in found for x in program.invars]


def _check(number: int, src: set[Any], closed: set[Any]) -> None:
    if src:
        raise TypeError(
            f"the rows `src` of this layer's reduction {number} depend on an earlier reduction or on "
            "degrees(), which a sampled block knows of its destinations alone, not of its sources: pass what "
            "depends on them as `dst`"
        )
    if closed:
        raise TypeError(
            f"the message of this layer's reduction {number} closes over an array that depends on rows, on "
            "an earlier reduction or on degrees(), but it may close over parameters and constants alone: "
            "pass rows of the destinations as `dst`, rows of the sources as `src`"
        )


def apply_reduced(apply: Apply, own: Rows, block: TracingBlock) -> Float[Array, "rows d_out"]:
    """A layer's result, from nodes' own rows and a block that holds the final states of what it asked for.

    >>> import jax.numpy as jnp
    >>> layer = lambda h, block: h + block.sum(2 * h)
    >>> apply_reduced(layer, jnp.ones((1, 2)), TracingBlock(jnp.array([3]), answers=[jnp.full((1, 2), 6.0)]))
    Array([[7., 7.]], dtype=float32)
    """
    return apply(own, block)


def names_read(apply: Apply, rows: Rows, edge_data: EdgeData) -> list[str]:
    """Which arrays of `edge_data` a layer's messages read, or it asks about.

    >>> edge = {"age": jnp.ones(1), "weight": jnp.ones(1)}
    >>> names_read(lambda h, block: block.sum(h), jnp.ones((1, 2)), edge)
    ['weight']
    """
    block = TracingBlock(jnp.ones(rows.shape[0], jnp.int32), edge_data)
    apply(rows, block)
    found = set(block.edge_data.seen)
    for asked in block.asked:

        def brings(data: EdgeData, asked: Asked = asked) -> Any:
            return asked.message(asked.dst, asked.src, data)

        given = {name: jnp.zeros((rows.shape[0], *x.shape[1:]), x.dtype) for name, x in edge_data.items()}
        program = jax.make_jaxpr(brings)(given).jaxpr
        used = {id(x) for eqn in program.eqns for x in eqn.invars} | {id(x) for x in program.outvars}
        found |= {name for name, x in zip(sorted(given), program.invars, strict=True) if id(x) in used}
    return sorted(found)
