"""Sum and maximum of gathered rows against NumPy, their gradients against the dense form's, their memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import NUM_NODES, WIDTH, features

from jsage._internal.arrays import take
from jsage.blocks.gather import (
    CHUNK,
    gather_max,
    gather_sum,
    messages,
    scatter_add_rows,
    segment_max,
    slot_max,
)

ROWS, K = 6, 3
REDUCE = {"sum": gather_sum, "max": gather_max}


def dense(name: str, table, src, mask, weight):
    """The same with the `[rows, k, d]` array in hand, for JAX to differentiate."""
    rows = table[src] if weight is None else table[src] * weight[..., None]
    rows = jnp.where(mask[..., None], rows, 0 if name == "sum" else -jnp.inf)
    return rows.sum(1) if name == "sum" else jnp.where(mask.any(1)[:, None], rows.max(1), 0)


def with_gradients(reduce):
    """The value, and the gradients with respect to the table and the weights."""

    def run(table, src, mask, weight, cotangent):
        value, pull = jax.vjp(lambda table, weight: reduce(table, src, mask, weight), table, weight)
        return value, pull(cotangent)

    return jax.jit(run)


compiled = {name: with_gradients(reduce) for name, reduce in REDUCE.items()}


@pytest.fixture(params=[False, True], ids=["plain", "weighted"])
def case(request):
    """Table, src, mask with every pattern of invalid slots, weight, cotangent."""
    rng = np.random.default_rng(0)
    src = jnp.asarray(rng.integers(0, NUM_NODES, (ROWS, K)), jnp.int32).at[0].set(jnp.array([2, 5, 2]))
    mask = jnp.asarray([[1, 1, 1], [1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]], bool)
    weight = jnp.asarray(features(1, ROWS, K)) if request.param else None
    return jnp.asarray(features(0)), src, mask, weight, jnp.asarray(features(2, ROWS))


def close(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)


@pytest.mark.parametrize("name", REDUCE)
def test_values_are_those_of_a_loop(name: str, case):
    table, src, mask, weight, _ = case
    value, _ = compiled[name](*case)
    scale = np.ones((ROWS, K)) if weight is None else np.asarray(weight, np.float64)
    for r in range(ROWS):
        valid = [scale[r, i] * np.asarray(table, np.float64)[src[r, i]] for i in range(K) if mask[r, i]]
        expected = getattr(np, name)(valid, axis=0) if valid else np.zeros(WIDTH)
        np.testing.assert_allclose(value[r], expected, atol=1e-5)


@pytest.mark.parametrize("name", REDUCE)
def test_gradients_are_those_of_the_dense_form(name: str, case):
    reference = with_gradients(lambda *args: dense(name, *args))
    close(compiled[name](*case), reference(*case))


@pytest.mark.parametrize("name", REDUCE)
def test_padding_is_never_read(name: str, case):
    table, src, mask, weight, cotangent = case
    table = jnp.concatenate([table, jnp.zeros((1, WIDTH))])
    clean = compiled[name](table, src, mask, weight, cotangent)
    poisoned = table.at[-1].set(jnp.nan)
    src = jnp.where(mask, src, NUM_NODES)
    weight = None if weight is None else jnp.where(mask, weight, jnp.nan)
    close(compiled[name](poisoned, src, mask, weight, cotangent), clean)


def test_ties_share_the_gradient_equally():
    table = jnp.array([[1.0, 0.0], [1.0, 3.0], [1.0, 3.0], [1.0, 3.0]])
    src, mask = jnp.array([[0, 1, 2, 3]]), jnp.array([[True, True, True, False]])
    grad = jax.grad(lambda table: gather_max(table, src, mask).sum())(table)
    np.testing.assert_allclose(grad, [[1 / 3, 0], [1 / 3, 1 / 2], [1 / 3, 1 / 2], [0, 0]], rtol=1e-6)
    grad = jax.grad(lambda rows: segment_max(rows, jnp.array([0, 0, 0, 1]), jnp.array([3])).sum())(table)
    np.testing.assert_allclose(grad, [[1 / 3, 0], [1 / 3, 1 / 2], [1 / 3, 1 / 2], [0, 0]], rtol=1e-6)


def test_bfloat16_is_summed_in_float32():
    table, n = jnp.ones((1, 2), jnp.bfloat16), 4096
    src, mask = jnp.zeros((1, n), jnp.int32), jnp.ones((1, n), bool)
    total, pull = jax.vjp(lambda table: gather_sum(table, src, mask), table)
    (grad,) = pull(jnp.ones((1, 2), jnp.bfloat16))
    assert total.dtype == grad.dtype == jnp.bfloat16
    assert (total == n).all()  # 256 + 1 is 256 in bfloat16
    assert (grad == n).all()


@pytest.mark.parametrize("name", REDUCE)
def test_no_implicit_promotion(name: str, case, strict_dtypes):
    table, src, mask, weight, cotangent = case
    for dtype in (jnp.float32, jnp.bfloat16):
        value, (d_table, d_weight) = jax.eval_shape(
            with_gradients(REDUCE[name]), table.astype(dtype), src, mask, weight, cotangent.astype(dtype)
        )
        assert value.dtype == d_table.dtype == dtype
        assert weight is None or d_weight.dtype == weight.dtype


@pytest.mark.parametrize("name", REDUCE)
def test_vmap_equals_a_loop(name: str, case):
    tables = jnp.stack([case[0], 2 - case[0]])
    mapped = jax.jit(jax.vmap(compiled[name], (0, *[None] * 4)))(tables, *case[1:])
    loop = jax.tree.map(lambda *x: jnp.stack(x), *(compiled[name](table, *case[1:]) for table in tables))
    close(mapped, loop)


@pytest.mark.parametrize("name", REDUCE)
def test_the_slots_are_never_all_in_memory(name: str):
    rows, k, d = 512, 16, 128

    def step(table, src, mask, cotangent):
        value, pull = jax.vjp(lambda table: REDUCE[name](table, src, mask), table)
        return value, pull(cotangent)

    row = jax.ShapeDtypeStruct((rows, d), jnp.float32)
    slot = jax.ShapeDtypeStruct((rows, k), jnp.int32)
    compiled = jax.jit(step).lower(row, slot, slot.update(dtype=bool), row).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < rows * k * d * 4 / 2


def test_take_and_messages_keep_shapes():
    table = jnp.asarray(features(0))
    ids = jnp.array([[1, 0], [3, 3]])
    np.testing.assert_array_equal(take(table, ids), np.asarray(table)[np.asarray(ids)])
    mask, weight = jnp.array([[True, False], [True, True]]), jnp.array([[2.0, jnp.nan], [0.0, -1.0]])
    rows = messages(take(table, ids), mask, weight)
    expected = np.asarray(table)[np.asarray(ids)] * np.array([[2.0, 0.0], [0.0, -1.0]])[..., None]
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


def test_the_maximum_over_slots_shares_its_gradient_between_valid_ties_and_reads_no_padding():
    rows = jnp.array([[3.0, 3.0, 3.0], [1.0, jnp.nan, -2.0], [0.0, 0.0, 0.0]])[..., None]
    mask = jnp.array([[True, True, False], [True, False, True], [False, False, False]])
    out, pull = jax.vjp(lambda rows: slot_max(rows, mask), rows)
    np.testing.assert_array_equal(out[:, 0], [3, 1, 0])
    (grad,) = pull(jnp.array([[8.0], [5.0], [7.0]]))
    np.testing.assert_array_equal(grad[..., 0], [[4, 4, 0], [5, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("num_src", [1, 7, 4000])
@pytest.mark.parametrize("valid", [0.0, 0.7, 1.0])
def test_spread_is_a_scatter_add(num_src: int, valid: float):
    """Sources read once, many times, by invalid slots alone and never; more repetitions than one chunk
    holds."""
    rng = np.random.default_rng(num_src)
    rows = rng.normal(size=(300, WIDTH)).astype(np.float32)
    src = rng.integers(0, num_src, (300, 5)).astype(np.int32)
    mask = rng.random(src.shape) < valid
    assert num_src > 7 or valid == 0 or mask.sum() > 2 * CHUNK
    expected = np.zeros((num_src, WIDTH))
    for row, ids, alive in zip(rows.astype(np.float64), src, mask, strict=True):
        np.add.at(expected, ids[alive], row)
    got = jax.jit(scatter_add_rows, static_argnums=3)(
        jnp.asarray(rows), jnp.asarray(src), jnp.asarray(mask), num_src
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_padding_is_never_spread():
    rows = jnp.array([[1.0], [jnp.nan]])
    src, mask = jnp.array([[0, 1], [0, 2]]), jnp.array([[True, True], [False, False]])
    np.testing.assert_array_equal(scatter_add_rows(rows, src, mask, 3), [[1.0], [1.0], [0.0]])


@pytest.mark.slow
def test_the_gradient_is_the_same_by_copies_and_by_adding():
    """`gather_sum` copies first slots on a CPU where the table is small, and adds all of them elsewhere."""
    src = jnp.asarray(np.random.default_rng(0).integers(0, 9, (6, 4)), jnp.int32)
    mask = src != 3
    small, large = jnp.asarray(features(0, 9)), jnp.asarray(features(0, 200))
    pull = jnp.asarray(features(1, 6))
    grads = [jax.vjp(lambda table: gather_sum(table, src, mask), t)[1](pull)[0] for t in (small, large)]
    np.testing.assert_allclose(grads[0], grads[1][:9], rtol=1e-5, atol=1e-6)
