"""What versions of jax call differently, in one place: found by what is there, not by a version's number."""

from functools import cache
from typing import Any

import jax

try:
    from jax.extend.core import get_opaque_trace_state as get_opaque_trace_state
except ImportError:  # jax 0.7
    from jax.core import get_opaque_trace_state as get_opaque_trace_state


def make_varying(x: Any, axes: tuple[Any, ...]) -> Any:
    """An array that varies over more mesh axes, within a `shard_map`.

    >>> make_varying(jax.numpy.ones(2), ())
    Array([1., 1.], dtype=float32)
    """
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, axes, to="varying")
    return jax.lax.pvary(x, axes)  # pyright: ignore[reportAttributeAccessIssue]


def varying_axes(kind: Any) -> frozenset[Any]:
    """The mesh axes that an array's type, or a shape, says that it varies over.

    >>> varying_axes(jax.typeof(jax.numpy.zeros(3)))
    frozenset()
    """
    manual = getattr(kind, "manual_axis_type", None)
    axes = getattr(kind, "vma", None) if manual is None else manual.varying
    return frozenset() if axes is None else frozenset(axes)


@cache
def has_key_kind(kind: str) -> bool:
    """Whether this jax makes typed keys of a kind: `philox4x32` came with 0.10.2.

    >>> has_key_kind("threefry2x32"), has_key_kind("no such kind")
    (True, False)
    """
    try:
        jax.eval_shape(lambda: jax.random.key(0, impl=kind))
    except ValueError:
        return False
    return True
