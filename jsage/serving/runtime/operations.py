"""What a program may do: arithmetic on arrays, and nothing that reaches out of them."""

import re

from jax import export
from jax.interpreters import mlir

ALLOWED = frozenset(
    re.findall(
        r"\S+",
        """
    builtin.module func.call func.func func.return
    abs add and atan2 bitcast_convert broadcast_in_dim case cbrt ceil clamp compare complex composite
    concatenate constant convert convolution cosine count_leading_zeros divide dot_general
    dynamic_broadcast_in_dim dynamic_conv dynamic_gather dynamic_iota dynamic_pad dynamic_reshape
    dynamic_slice dynamic_update_slice exponential exponential_minus_one floor gather get_dimension_size
    get_tuple_element if imag iota is_finite log log_plus_one logistic map maximum minimum multiply negate
    not optimization_barrier or pad popcnt power real real_dynamic_slice reduce reduce_precision
    reduce_window remainder reshape return reverse rng_bit_generator round_nearest_afz round_nearest_even
    rsqrt scatter select select_and_scatter shift_left shift_right_arithmetic shift_right_logical sign sine
    slice sort sqrt subtract tan tanh transpose tuple while xor
    """,
    )
)
"""Operations by name, those of StableHLO without `stablehlo.`: functions without a side effect."""
CALLS = frozenset({"shape_assertion", "stablehlo.dynamic_reduce_window"})
"""Custom calls that jax itself replaces, so that none reaches a library by its name."""
LONGEST = 32
"""Characters of a dimension as text: the longest of an export is `num_nodes + 1`."""


def check_dimensions(data: bytes) -> None:
    """ValueError for a serialized program with a dimension so long that jax would read it for hours.

    Texts are stored behind their length, four bytes.

    >>> check_dimensions((40).to_bytes(4, "little") + b"+".join([b"n"] * 20) + b"+n")
    Traceback (most recent call last):
    ValueError: a dimension has at most 32 characters, got 40: n+n+n+n+n+n+n+n+...
    """
    for found in re.finditer(rb"[\w +*(),\x80-\xff-]{%d,}" % (LONGEST + 1), data):
        length = int.from_bytes(data[max(found.start() - 4, 0) : found.start()], "little")
        if LONGEST < length <= len(found[0]):
            text = found[0][:16].decode(errors="replace")
            raise ValueError(f"a dimension has at most {LONGEST} characters, got {length}: {text}...")


def check_operations(exported: export.Exported) -> None:
    """ValueError for an operation that is not in `ALLOWED`, or a custom call that is not in `CALLS`.

    >>> import jax
    >>> solve = jax.jit(jax.numpy.linalg.cholesky)
    >>> check_operations(export.export(solve, platforms=["cpu"])(jax.numpy.eye(2)))
    Traceback (most recent call last):
    ValueError: expected arithmetic on arrays alone, got custom_call @lapack_...potrf_ffi
    """
    found: set[str] = set()

    def see(operation: mlir.ir.Operation) -> mlir.ir.WalkResult:
        name = operation.name.removeprefix("stablehlo.")
        if name == "custom_call":
            target = mlir.ir.StringAttr(operation.attributes["call_target_name"]).value
            found.update({f"custom_call @{target}"} - {f"custom_call @{call}" for call in CALLS})
        elif name not in ALLOWED:
            found.add(name)
        return mlir.ir.WalkResult.ADVANCE

    with mlir.make_ir_context():
        mlir.ir.Module.parse(exported.mlir_module()).operation.walk(see)
    if found:
        raise ValueError(f"expected arithmetic on arrays alone, got {', '.join(sorted(found))}")
