"""One layer against Algorithm 1 in NumPy, on every layout and option; its padding, zeros, dropout, dtypes."""

import re
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax.errors import InvalidRngError
from helpers import AGGREGATORS, AWKWARD, LAYOUTS, NUM_NODES, WIDTH, features, graph, hop, slow_but

from jsage import aggregate
from jsage.blocks import Tree, as_tree
from jsage.nn import LSTM, Pool, SAGEConv, l2_normalize
from jsage.sampling import full_block

ALL = {**AGGREGATORS, "max pool": Pool(), "mean pool": Pool(7, reduce=aggregate.mean), "lstm": LSTM()}

OPTIONS = {
    "plain": {},
    "weights, concat, project, normalize": {
        "self_term": True,
        "concat": True,
        "project": True,
        "normalize": True,
    },
    "weights, neighbors alone": {"self_term": False, "bias": False, "normalize": True},
}

quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
"""For programs that run once: compiled quickly rather than well."""

CASES = [(name, option) for name in ALL for option in OPTIONS]
every = pytest.mark.parametrize(
    ("name", "option"), slow_but([case for case in CASES if case[0] not in ("min", "std")], CASES)
)


@jax.jit
def laid_out(block, table):
    """Rows and block in every layout; the table's last row is one that no slot reads."""
    return {layout: lay(block, table) for layout, lay in LAYOUTS.items()}


@cache
def layer(name: str, option: str):
    """A layer, random parameters, and its compiled output and gradients on all layouts at once."""
    conv = SAGEConv(3, aggregate=ALL[name], **OPTIONS[option])
    block, table = hop("random"), np.zeros((NUM_NODES + 1, WIDTH), np.float32)
    shapes = jax.eval_shape(conv.init, jax.random.key(0), table, block)["params"]

    def run(params, laid, cotangent):
        def loss(params, h, block):
            out = conv.apply({"params": params}, h, block)
            return (out * cotangent).sum(), out

        grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        return {layout: grad(params, h, block) for layout, (h, block) in laid.items()}

    return reference.filled(shapes), quick(run)


def case(option: str, of: str):
    """A sampled hop with weights where the option has them, a table, and the output's cotangent."""
    width = 6 if OPTIONS[option].get("concat") else 3
    block = hop(of, weighted="weights" in option)
    return block, features(1, NUM_NODES + 1), features(2, NUM_NODES, width)


def neighbor_lists(block):
    return reference.slots(block.dst, block.src, block.mask, block.edge_data.get("weight"))


def to_table(layout: str, block, grad) -> np.ndarray:
    """The gradient with respect to the table from that of the rows that a layout reads."""
    if "tree" not in layout:
        return np.asarray(grad)
    table = np.zeros((NUM_NODES + 1, WIDTH))
    np.add.at(table, np.asarray(as_tree(block)[0]), np.asarray(grad))
    return table


@every
def test_values_and_gradients_are_those_of_algorithm_1(name, option):
    params, run = layer(name, option)
    settings = {key: OPTIONS[option].get(key, False) for key in ("concat", "normalize")}
    for of in AWKWARD:
        block, table, cotangent = case(option, of)
        lists = neighbor_lists(block)

        def algorithm_1(at, lists=lists):
            return reference.convolve(at["params"], at["table"], lists, name, **settings)

        expected = algorithm_1(reference.float64({"params": params, "table": table}))
        results = run(params, laid_out(block, table), cotangent)
        for layout, ((_, out), (d_params, d_rows)) in results.items():
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5, err_msg=f"{of}, {layout}")
            grads = {"params": d_params, "table": to_table(layout, block, d_rows)}
            if layout == "indexed":
                first = grads
                if of in ("random", "isolated nodes"):
                    at = {"params": params, "table": table}
                    reference.check_gradients(algorithm_1, cotangent, at, grads)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), grads, first)


def poisoned(layout: str, block, h):
    """NaN in every row that padded slots alone point at."""
    h = np.array(h)
    if "tree" in layout:
        h[NUM_NODES:][~np.asarray(block.mask).ravel()] = np.nan
    else:
        h[NUM_NODES] = np.nan
    return h


@every
@pytest.mark.parametrize("of", ["isolated nodes", "no edges"])
def test_poison_in_the_padding_changes_nothing(name, option, of):
    params, run = layer(name, option)
    block, table, cotangent = case(option, of)
    block = block._replace(src=np.where(block.mask, block.src, NUM_NODES))
    laid = laid_out(block, table)
    clean = run(params, laid, cotangent)
    dirty = run(params, {key: (poisoned(key, block, h), b) for key, (h, b) in laid.items()}, cotangent)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@every
def test_nothing_but_zeros_gives_finite_values_and_gradients(name, option):
    params, run = layer(name, option)
    block, table, cotangent = case(option, "isolated nodes")
    for values in (params, jax.tree.map(np.zeros_like, params)):
        results = run(values, laid_out(block, np.zeros_like(table)), cotangent)
        assert all((np.abs(x) < 1e4).all() for x in jax.tree.leaves(results))  # NaN is not less


def whole(of: str, num_edges: int = 40):
    """A graph's weighted edges as one block, padded so that all graphs have one shape; and its lists."""
    block, (src, dst, _) = full_block(graph(of, weighted=True)), AWKWARD[of]
    spare = (0, num_edges - len(src))
    padded = block._replace(
        src=np.pad(block.src, spare),
        dst=np.pad(block.dst, spare, constant_values=NUM_NODES),
        edge_data={"weight": np.pad(block.edge_data["weight"], spare, constant_values=np.nan)},
    )
    return padded, reference.edges(src, dst, NUM_NODES, features(7, len(src), 1)[:, 0])


@pytest.mark.parametrize("name", ["sum", "mean", "gcn", "max"])
def test_a_narrowing_layer_on_the_whole_graph_is_that_of_algorithm_1(name):
    conv, table, cotangent = SAGEConv(2, aggregate=ALL[name]), features(3), features(4, width=2)
    shapes = jax.eval_shape(conv.init, jax.random.key(0), table, whole("random")[0])["params"]
    params = reference.filled(shapes)

    @quick
    def run(params, table, block):
        def loss(at):
            out = conv.apply({"params": at["params"]}, at["table"], block)
            return (out * cotangent).sum(), out

        return jax.grad(loss, has_aux=True)({"params": params, "table": table})

    for of in AWKWARD:
        block, lists = whole(of)
        grads, out = run(params, table, block)

        def algorithm_1(at, lists=lists):
            return reference.convolve(at["params"], at["table"], lists, name)

        at = {"params": params, "table": table}
        np.testing.assert_allclose(out, algorithm_1(reference.float64(at)), rtol=1e-5, atol=1e-5, err_msg=of)
        reference.check_gradients(algorithm_1, cotangent, at, grads)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"self", "neigh", "bias"}),
        ({"aggregate": aggregate.gcn}, {"neigh", "bias"}),
        ({"aggregate": aggregate.gcn, "self_term": True}, {"self", "neigh", "bias"}),
        ({"self_term": False, "bias": False}, {"neigh"}),
        ({"project": True}, {"self", "neigh", "bias", "project"}),
        ({"aggregate": Pool()}, {"self", "neigh", "bias", "aggregate"}),
    ],
)
def test_a_layer_has_the_parameters_of_its_options_and_no_others(options, names):
    shapes = jax.eval_shape(SAGEConv(3, **options).init, jax.random.key(0), jnp.ones((3, 5)), PAIR)["params"]
    assert set(shapes) == names


PAIR = Tree(jax.device_put(np.array([[True, True]])))
"""One destination and two neighbors."""


def test_concat_doubles_the_width_and_its_bias():
    start = quick(SAGEConv(3, concat=True).init_with_output)
    out, variables = start(jax.random.key(0), np.ones((3, 5), np.float32), PAIR)
    assert out.shape == (1, 6)
    assert variables["params"]["bias"].shape == (6,)


def test_rows_that_do_not_fit_a_tree_are_refused():
    with pytest.raises(ValueError, match=r"1 destinations x 2 slots reads 3 rows .* got 4: pass what"):
        SAGEConv(3).init(jax.random.key(0), jnp.ones((4, 5)), PAIR)


def test_normalized_rows_have_length_1_and_zeros_stay():
    rows = features(5)
    rows[2] = 0
    rows[3] *= np.float32(1e-9)
    lengths = np.linalg.norm(quick(l2_normalize)(rows), axis=1)
    np.testing.assert_allclose(lengths, [1, 1, 0, 1, 1, 1, 1, 1], rtol=1e-6)
    slope = np.asarray(quick(jax.grad(lambda rows: l2_normalize(rows).sum()))(rows))
    assert np.isfinite(slope).all()
    assert not slope[2].any()


def identity_self(**options):
    """A layer whose output is its own (dropped) row, and its parameters."""
    conv = SAGEConv(WIDTH, bias=False, **options)
    one = np.eye(WIDTH, dtype=np.float32)
    return conv, {"params": {"self": {"kernel": one}, "neigh": {"kernel": -one}}}


def test_dropout_keeps_its_share_scaled_and_draws_anew_for_each_key():
    conv, params = identity_self(dropout=0.3)
    h, block = np.ones((6000, WIDTH), np.float32), Tree(np.zeros((3000, 1), bool))
    drop = quick(partial(conv.apply, deterministic=False))
    first, again, other = (
        np.asarray(drop(params, h, block, rngs={"dropout": jax.random.key(i)})) for i in (0, 0, 1)
    )
    np.testing.assert_allclose(first[first != 0], 1 / 0.7, rtol=1e-6)
    assert abs((first != 0).mean() - 0.7) < 0.015  # four standard errors
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.3
    np.testing.assert_array_equal(quick(conv.apply)(params, h, block), h[:3000])


def test_dropout_without_its_rng_stream_says_so():
    (conv, params), rows = identity_self(dropout=0.3), np.ones((3, WIDTH), np.float32)
    with pytest.raises(InvalidRngError, match="dropout"):
        jax.eval_shape(partial(conv.apply, deterministic=False), params, rows, PAIR)


def test_on_the_whole_graph_a_row_is_dropped_once_for_all_its_readers():
    conv, params = identity_self(dropout=0.5)
    loops = full_block(graph("self-loops"))._replace(
        src=np.arange(NUM_NODES), dst=np.arange(NUM_NODES), degree=np.ones(NUM_NODES, np.int32)
    )
    drop = quick(partial(conv.apply, deterministic=False))
    rows = np.ones((NUM_NODES, WIDTH), np.float32)
    out = drop(params, rows, loops, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(out, 0)  # each node reads itself: h - h


def test_it_can_be_rematerialized_with_an_aggregator_of_its_own():
    plain, spared = (kind(3, aggregate=Pool()) for kind in (SAGEConv, nn.remat(SAGEConv)))
    h, block = laid_out(hop("random"), features(1))["tree"]
    params = reference.filled(jax.eval_shape(spared.init, jax.random.key(0), h, block))
    slope = lambda conv, params: jax.grad(lambda params: conv.apply(params, h, block).sum())(params)  # noqa: E731
    both = quick(lambda params: (slope(plain, params), slope(spared, params)))(params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), *both)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_computes_in_bfloat16_near_float32(name):
    kind = ALL[name]
    half = kind.clone(dtype=jnp.bfloat16) if isinstance(kind, nn.Module) else kind
    block, table, _ = case("plain", "random")
    h, block = laid_out(block, table)["tree"]
    fine, coarse = SAGEConv(3, aggregate=kind), SAGEConv(3, aggregate=half, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(coarse.init, jax.random.key(0), h, block)["params"]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    params = {"params": jax.tree.map(lambda x: 0.5 * x, reference.filled(shapes))}
    program = str(jax.make_jaxpr(coarse.apply)(params, h, block))
    assert set(re.findall(r"(\w+)\[[\d,]*\] = dot_general", program)) == {"bf16"}
    near = quick(coarse.apply)(params, np.asarray(h).astype(jnp.bfloat16), block)
    assert near.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(near).astype(np.float32), quick(fine.apply)(params, h, block), rtol=0.05, atol=0.05
    )
