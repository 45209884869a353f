"""Aggregators without parameters: `(h, block) -> pooled`, the same on every layout.

`m_u` is neighbor `u`'s row times the edge's weight, where there is one. A destination without
neighbors pools to 0 (with `gcn`: to its own row). Aggregators with parameters live in `jsage.nn`.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Num

from jsage.blocks.layout import Block
from jsage.blocks.reductions import MAX, SUM, column, weighted_source
from jsage.typing import EdgeData

Rows: TypeAlias = Any
"""`Num[HostArray, "num_src *d"]`; sparse ones are refused by the block, which says what reads them."""
Pooled: TypeAlias = Num[Array, "num_dst *d_out"]
"""As wide as the rows, unless the block is a view that changes them."""


def sum(h: Rows, block: Block) -> Pooled:
    """`sum_u m_u`.

    >>> import jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> sum(jnp.array([[1.0], [2.0], [4.0]]), Tree(jnp.array([[True, True]])))
    Array([[6.]], dtype=float32)
    """
    return block.reduce(weighted_source, SUM, None, h)


def mean(h: Rows, block: Block) -> Pooled:
    """`sum_u m_u / number of neighbors` (Hamilton et al., 2017, section 3.3).

    Weights multiply, they do not normalize: the divisor is the number of valid slots.

    >>> import jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> mean(jnp.array([[1.0], [2.0], [4.0]]), Tree(jnp.array([[True, True]])))
    Array([[3.]], dtype=float32)
    """
    return _divided(_total(h, block), jnp.maximum(block.degrees(), 1), h)


def max(h: Rows, block: Block) -> Pooled:
    """`max_u m_u`, elementwise; ties share the gradient equally.

    >>> import jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> max(jnp.array([[1.0], [2.0], [4.0]]), Tree(jnp.array([[True, True]])))
    Array([[4.]], dtype=float32)
    """
    return block.reduce(weighted_source, MAX, None, h)


def min(h: Rows, block: Block) -> Pooled:
    """`min_u m_u`, elementwise; ties share the gradient equally.

    >>> import jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> min(jnp.array([[1.0], [2.0], [4.0]]), Tree(jnp.array([[True, True]])))
    Array([[2.]], dtype=float32)
    """

    def message(dst: Any, h: Array, edge: EdgeData) -> Array:
        return -weighted_source(dst, h, edge)  # negated here: a view of the block may change rows before

    return -block.reduce(message, MAX, None, jnp.asarray(h))


def var(h: Rows, block: Block) -> Pooled:
    """`mean_u (m_u - mean_u m_u)^2`, elementwise, without the cancellation of a difference of squares.

    Gradients do not pass through the mean that is subtracted: theirs is zero.

    >>> import jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> var(jnp.array([[1.0], [2.0], [4.0]]), Tree(jnp.array([[True, True]])))
    Array([[1.]], dtype=float32)
    """
    center = jax.lax.stop_gradient(mean(h, block))

    def message(center: Array, h: Array, edge: EdgeData) -> Array:
        return jnp.square(weighted_source(None, h, edge) - center)

    total = block.reduce(message, SUM, center, h)
    return _divided(total, jnp.maximum(block.degrees(), 1), h)


def std(h: Rows, block: Block) -> Pooled:
    """The square root of `var`, and 0, with no gradient, where that is at most 1e-5 (Corso et al., 2020).

    >>> import jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> std(jnp.array([[1.0], [2.0], [6.0]]), Tree(jnp.array([[True, True]])))
    Array([[2.]], dtype=float32)
    """
    square = var(h, block)
    large = square > LEAST_VARIANCE
    return jnp.where(large, jnp.sqrt(jnp.where(large, square, 1)), 0).astype(square.dtype)


LEAST_VARIANCE = 1e-5
"""Below it a standard deviation counts as 0: the root's derivative grows without end."""


def gcn(h: Rows, block: Block) -> Pooled:
    """`(h_v + sum_u m_u) / (1 + number of neighbors)` (Hamilton et al., 2017, equation 2).

    It holds the destination's own row, so a layer with it has no self term.

    >>> import jax.numpy as jnp
    >>> from jsage.blocks import Tree
    >>> gcn(jnp.array([[1.0], [2.0], [6.0]]), Tree(jnp.array([[True, True]])))
    Array([[3.]], dtype=float32)
    """
    return _divided(block.own(h) + _total(h, block), 1 + block.degrees(), h)


WIDE_SUM = SUM._replace(finish=lambda state, degree, message: state)
"""A sum in float32, of rows in float16: what is divided afterwards may be beyond 65,504."""


def _total(h: Rows, block: Block) -> Pooled:
    return block.reduce(weighted_source, WIDE_SUM if h.dtype == jnp.float16 else SUM, None, h)


def _divided(total: Array, count: Array, h: Rows) -> Pooled:
    found = total / column(count, total).astype(total.dtype)
    return found.astype(h.dtype) if h.dtype == jnp.float16 else found
