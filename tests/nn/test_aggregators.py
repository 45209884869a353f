"""Pool and LSTM alone: against NumPy, their widths, and the random order that an LSTM reads in."""

from functools import cache, partial
from itertools import permutations
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import AWKWARD, LAYOUTS, NUM_NODES, WIDTH, features, graph, hop, slow_but
from scipy.stats import chisquare

from jsage import aggregate
from jsage.blocks import Tree
from jsage.blocks.shuffle import FEW, _permuted, shuffled
from jsage.nn import LSTM, Pool, SAGEConv, Several, Softmax
from jsage.sampling import full_block

quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
"""For programs that run once: compiled quickly rather than well."""

SEVERAL = Several((aggregate.mean, aggregate.max, aggregate.std))
MODULES = {
    "max pool": (Pool(3), 3),
    "mean pool": (Pool(3, reduce=aggregate.mean), 3),
    "lstm": (LSTM(3), 3),
    "softmax": (Softmax(), WIDTH),
    "several": (SEVERAL, 3 * WIDTH),
}
"""name -> the module and its width"""


def pooled(name: str, params, table, block) -> np.ndarray:
    """One destination at a time."""
    lists = reference.slots(block.dst, block.src, block.mask, block.edge_data.get("weight"))
    rows = [reference.aggregate(name, params, table, *reads) for reads in zip(*lists, strict=True)]
    return np.stack(rows)


@pytest.mark.parametrize("name", slow_but(["max pool", "mean pool", "lstm", "softmax"], MODULES))
def test_values_and_gradients_on_every_layout(name):
    (module, width), table = MODULES[name], features(1)
    cotangent = features(2, width=width)
    shapes = jax.eval_shape(module.init, jax.random.key(0), table, hop("random")).get("params", {})
    params = reference.filled(shapes)

    @quick
    def run(params, table, block):
        def loss(at, lay):
            out = module.apply({"params": at["params"]}, *lay(block, at["table"]))
            return (out * cotangent).sum(), out

        grad = jax.grad(loss, has_aux=True)
        return {layout: grad({"params": params, "table": table}, lay) for layout, lay in LAYOUTS.items()}

    for of in AWKWARD:
        block, at = hop(of, weighted=True), {"params": params, "table": table}
        expected = pooled(name, *reference.float64(at).values(), block)
        results = run(params, table, block)
        for layout, (_, out) in results.items():
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5, err_msg=f"{of}, {layout}")
        first = results["indexed"][0]
        for grads, _ in results.values():
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), grads, first)
        algorithm_1 = lambda at: pooled(name, *at.values(), block)  # noqa: B023, E731
        reference.check_gradients(algorithm_1, cotangent, at, first)


def test_a_softmax_is_a_mean_without_temperature_and_near_the_maximum_with_much():
    table, block = features(1), hop("random")
    ends = quick(lambda h, block: [Softmax(t, learn=False).apply({}, h, block) for t in (0.0, 1000.0)])
    plain = quick(lambda h, block: [aggregate.mean(h, block), aggregate.max(h, block)])
    for found, expected in zip(ends(table, block), plain(table, block), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_several_modules_have_parameters_of_their_own():
    conv = SAGEConv(3, aggregate=Several((Pool(), Pool(), Softmax())))
    shapes = jax.eval_shape(conv.init, jax.random.key(0), features(1), hop("random"))["params"]
    assert set(shapes["aggregate"]) == {"aggregates_0", "aggregates_1", "aggregates_2"}
    assert shapes["neigh"]["kernel"].shape == (3 * WIDTH, 3)


@pytest.mark.parametrize("module", [Pool(), LSTM()])
def test_the_width_is_the_inputs_unless_it_is_said(module):
    for features_, width in ((None, WIDTH), (7, 7)):
        sized = module.clone(features=features_)
        out, _ = jax.eval_shape(sized.init_with_output, jax.random.key(0), features(0), hop("random"))
        assert out.shape == (NUM_NODES, width)


def test_pool_applies_its_activation_and_reduction():
    pool, h = Pool(act=jnp.tanh, reduce=aggregate.sum), jnp.asarray(features(0, 3, 2))
    params = {"params": {"dense": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}}
    out = pool.apply(params, h, Tree(jnp.array([[True, True]])))
    np.testing.assert_allclose(out[0], np.tanh(h[1]) + np.tanh(h[2]), rtol=1e-6)


def test_an_edge_list_without_an_order_says_how_to_get_one():
    with pytest.raises(TypeError, match=r"full_block\(graph, slots=True\)"):
        LSTM().init(jax.random.key(0), jnp.asarray(features(0)), full_block(graph("random")))


NEIGHBORS = 3
VALID = np.array([[True] * NEIGHBORS, [False] * NEIGHBORS, [True, True, False]])
ROWS = features(4, VALID.shape[0] + VALID.size, 2)


@quick
def lstm(params, rows, mask, rngs):
    return LSTM(4).apply(params, rows, Tree(mask), rngs=rngs)


@cache
def parameters():
    return reference.filled(jax.eval_shape(LSTM(4).init, jax.random.key(0), ROWS, Tree(jnp.asarray(VALID))))


def read(mask: np.ndarray, rows: np.ndarray, **rngs) -> np.ndarray:
    """An LSTM of fixed parameters on a tree block."""
    return np.asarray(lstm(parameters(), rows, mask, rngs))


def test_without_the_order_stream_slots_are_read_in_their_order():
    first = read(VALID, ROWS)
    np.testing.assert_array_equal(first, read(VALID, ROWS))
    np.testing.assert_array_equal(first, read(VALID, ROWS, dropout=jax.random.key(0)))
    assert not first[1].any()


def test_with_the_order_stream_neighbors_are_read_in_every_order():
    num_dst, fanout = VALID.shape
    slots = ROWS[num_dst:].reshape(num_dst, fanout, -1)
    turns = list(permutations(range(NEIGHBORS)))
    turned = [np.concatenate([ROWS[:num_dst], slots[:, turn].reshape(-1, 2)]) for turn in turns]
    possible = np.stack([read(VALID, rows)[0] for rows in turned])
    many = np.tile(VALID[:1], (300, 1))
    rows = np.concatenate([np.zeros((300, 2), np.float32), np.tile(slots[0], (300, 1))])
    out = read(many, rows, order=jax.random.key(3))
    distance = np.abs(out[:, None] - possible[None]).max(-1)
    assert (distance.min(1) < 1e-6).all()
    assert set(distance.argmin(1)) == set(range(len(turns)))
    assert (out != read(many, rows, order=jax.random.key(4))).any()
    np.testing.assert_array_equal(out, read(many, rows, order=jax.random.key(3)))


def test_padding_between_and_whatever_it_holds_changes_no_bit():
    num_dst, wide = VALID.shape[0], 2 * NEIGHBORS
    mask, rows = np.zeros((num_dst, wide), bool), np.zeros((num_dst, wide, 2), np.float32)
    mask[:, 1::2], rows[:, 1::2] = VALID, ROWS[num_dst:].reshape(num_dst, NEIGHBORS, 2)
    clean, poisoned = (
        np.concatenate([ROWS[:num_dst], np.where(mask[..., None], rows, padding).reshape(-1, 2)])
        for padding in (np.float32(0), np.float32(np.nan))
    )
    np.testing.assert_array_equal(read(mask, poisoned), read(VALID, ROWS))
    order = {"order": jax.random.key(0)}
    np.testing.assert_array_equal(read(mask, poisoned, **order), read(mask, clean, **order))


def test_bfloat16_rows_are_read_with_float32_parameters():
    exact = read(VALID, ROWS)
    coarse = read(VALID, ROWS.astype(jnp.bfloat16))
    assert coarse.dtype == jnp.float32
    np.testing.assert_allclose(coarse, exact, atol=0.03)


@pytest.mark.parametrize("valid", [(0, 1, 2, 3), (1, 2, 4)], ids=["all valid", "padding between"])
def test_every_order_of_the_valid_slots_is_equally_likely(valid):
    rows, k = 50_000, 5
    mask = np.isin(np.arange(k), valid)
    order = np.asarray(shuffled(jax.random.bits(jax.random.key(5), (rows, k)), jnp.tile(mask, (rows, 1))))
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(k), (rows, 1)))
    assert np.isin(order[:, : len(valid)], valid).all()
    code = order[:, : len(valid)] @ k ** np.arange(len(valid))
    counts = np.unique(code, return_counts=True)[1]
    assert len(counts) == factorial(len(valid))
    assert chisquare(counts).pvalue > 1e-3


def test_valid_slots_come_first_even_for_the_largest_bits_and_for_ties():
    mask = jnp.array([[False, True, False, True]])
    for bits in (0, 1, 2**31, 2**32 - 1):
        np.testing.assert_array_equal(shuffled(jnp.full((1, 4), bits, jnp.uint32), mask), [[1, 3, 0, 2]])


@pytest.mark.parametrize("k", [1, 5, FEW, FEW + 1])
def test_by_pairs_and_by_sorting_the_order_is_the_same(k):
    rng = np.random.default_rng(k)
    bits, mask = rng.integers(0, 50, (20, k), np.uint32), rng.random((20, k)) < 0.7  # many ties
    order = np.asarray(quick(shuffled)(bits, mask))
    keys = np.where(mask, bits.astype(np.int64) >> 1, 2**31)
    np.testing.assert_array_equal(order, np.argsort(keys, axis=1, kind="stable"))
    rows, cotangent = (rng.normal(size=(20, k, 2)).astype(np.float32) for _ in range(2))
    out, pull = jax.vjp(lambda rows: _permuted(rows, jnp.asarray(order)), jnp.asarray(rows))
    np.testing.assert_array_equal(out, np.take_along_axis(rows, order[..., None], 1))
    expected = np.zeros_like(rows)
    np.put_along_axis(expected, np.broadcast_to(order[..., None], rows.shape), cotangent, 1)
    np.testing.assert_array_equal(pull(jnp.asarray(cotangent))[0], expected)
