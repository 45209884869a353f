"""Convolutions with attention and with edge features against NumPy formulas on every layout; their laws."""

import re
from functools import cache, partial

import flax.linen as nn
import formulas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import AWKWARD, DRAWS, FANOUT, LAYOUTS, NUM_NODES, WIDTH, features, hop, lay, slow_but

from jsage import NewNodes, aggregate
from jsage.blocks import Tree, as_tree
from jsage.graph import from_edges
from jsage.infer import embed_all, embed_new
from jsage.nn import (
    LSTM,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINEConv,
    GraphSAGE,
    Pool,
    SAGEConv,
    Several,
    Softmax,
    TransformerConv,
)
from jsage.nn.attention import attention_of
from jsage.sampling import full_block, sample_blocks, sample_neighbors

quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
"""For programs that run once: compiled quickly rather than well."""

EDGE, OUT = 3, 4
PAIR = Tree(np.array([[True, True]]))
"""One destination and two neighbors."""

ATTENTION = {
    "gat": (GATConv, formulas.gat, {"heads": 2, "edge": "attr"}),
    "gat, neighbors alone": (GATConv, formulas.gat, {"heads": 2, "own": False, "residual": True}),
    "gat, a matrix for each end": (GATConv, formulas.gat, {"share": False, "heads": 3, "concat": False}),
    "gatv2": (GATv2Conv, formulas.gatv2, {"heads": 2, "edge": "attr", "negative_slope": 0.3}),
    "gatv2, shared": (GATv2Conv, formulas.gatv2, {"share": True, "own": False, "bias": False}),
    "gatv2, mean of heads": (
        GATv2Conv,
        formulas.gatv2,
        {"heads": 3, "concat": False, "residual": True},
    ),
    "transformer": (TransformerConv, formulas.transformer, {"heads": 2, "edge": "attr", "beta": True}),
    "transformer, plain": (TransformerConv, formulas.transformer, {"heads": 2}),
    "transformer, neighbors alone": (
        TransformerConv,
        formulas.transformer,
        {"heads": 3, "concat": False, "self_term": False, "edge": "attr"},
    ),
}
SAGE = {
    "sum": aggregate.sum,
    "mean": aggregate.mean,
    "gcn": aggregate.gcn,
    "max": aggregate.max,
    "min": aggregate.min,
    "std": aggregate.std,
    "softmax": Softmax(),
    "several": Several((aggregate.mean, aggregate.max, aggregate.std)),
    "max pool": Pool(6),
    "lstm": LSTM(4),
}
OTHERS = {
    "gcn": GCNConv(OUT),
    "gine": GINEConv(OUT, edge="attr", eps=0.25, train_eps=True, hidden=5),
    "gine, no edges": GINEConv(OUT, eps=0.25),
    **{f"sage {name}": SAGEConv(OUT, aggregate=kind, edge="attr") for name, kind in SAGE.items()},
}
ALL = {**{name: kind(OUT, **o) for name, (kind, _, o) in ATTENTION.items()}, **OTHERS}
QUICK = ["gatv2", "transformer"]
some = pytest.mark.parametrize("name", slow_but([*QUICK, "gcn", "sage mean"], ALL))
weighing = pytest.mark.parametrize("name", slow_but(QUICK, ATTENTION))


def case(of: str):
    """A sampled hop with features of its slots, and with weights of a graph convolution."""
    block, random = hop(of), np.random.default_rng(5)
    mask = np.asarray(block.mask)
    own = np.repeat(random.random((NUM_NODES, 1), np.float32), FANOUT, 1)
    attr = random.normal(size=(*mask.shape, EDGE)).astype(np.float32)
    weight = random.normal(size=mask.shape).astype(np.float32)
    return jax.tree.map(np.asarray, block), {"attr": attr}, {"weight": weight, "own_weight": own}


def laid(block, table, edge_data):
    return {name: lay(name, block._replace(edge_data=edge_data), table) for name in LAYOUTS}


def weights_of(name: str) -> tuple[str, ...]:
    return ("weight", "own_weight") if name == "gcn" else ()


@cache
def layer(name: str):
    """Random parameters, and the compiled output and gradients on all layouts at once."""
    conv = ALL[name]
    block, attr, weights = case("random")
    data = {**attr, **{key: weights[key] for key in weights_of(name)}}
    shapes = jax.eval_shape(
        conv.init, jax.random.key(0), features(1, NUM_NODES + 1), block._replace(edge_data=data)
    )["params"]

    def run(at, block, weights, cotangent):
        def loss(at, layout):
            edge_data = {"attr": at["attr"], **weights}
            h, laid_block = lay(layout, block._replace(edge_data=edge_data), at["table"])
            out = conv.apply({"params": at["params"]}, h, laid_block)
            return (out * cotangent).sum(), out

        return {name: jax.grad(loss, has_aux=True)(at, name) for name in LAYOUTS}

    return reference.filled(shapes), quick(run)


def expected(name: str, at, block, weights):
    """The formula's rows."""
    p, h, edges = at["params"], at["table"], at["attr"]
    if name in ATTENTION:
        _, kind, options = ATTENTION[name]
        return formulas.attention(kind, p, h, block, edges, options)[0]
    if name == "gcn":
        return formulas.gcn(p, h, block, edges, weights["weight"], weights["own_weight"][:, 0])
    if name.startswith("gine"):
        return formulas.gine(p, h, block, edges, {"edge": "attr" if name == "gine" else None, "eps": 0.25})
    return formulas.sage_with_edges(p, h, block, edges, name.removeprefix("sage "))


@some
def test_values_and_gradients_are_those_of_the_formula(name):
    params, run = layer(name)
    cotangent = features(2, NUM_NODES, OUT)
    for of in AWKWARD:
        block, attr, weights = case(of)
        weights = {key: weights[key] for key in weights_of(name)}
        at = {"params": params, "table": features(1, NUM_NODES + 1), **attr}

        def formula(at, block=block, weights=weights):
            return expected(name, at, block, weights)

        rows, results = formula(reference.float64(at)), run(at, block, weights, cotangent)
        for layout, (_, out) in results.items():
            np.testing.assert_allclose(out, rows, rtol=2e-5, atol=2e-5, err_msg=f"{of}, {layout}")
        first = results["indexed"][0]
        for grads, _ in results.values():
            jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), grads, first)
        assert not np.asarray(first["attr"])[~block.mask].any()
        if of in ("random", "isolated nodes"):
            reference.check_gradients(formula, cotangent, at, first)


@some
def test_poison_in_the_padding_changes_nothing(name):
    params, run = layer(name)
    for of in ("isolated nodes", "no edges"):
        block, attr, weights = case(of)
        block = block._replace(src=np.where(block.mask, block.src, NUM_NODES))
        weights = {key: weights[key] for key in weights_of(name)}
        clean = {"params": params, "table": features(1, NUM_NODES + 1), **attr}
        table = clean["table"].copy()
        table[NUM_NODES] = np.nan
        dirty = {**clean, "table": table, "attr": np.where(block.mask[..., None], attr["attr"], np.nan)}
        poisoned = {key: np.where(block.mask, x, np.nan) for key, x in weights.items()}
        jax.tree.map(
            np.testing.assert_array_equal,
            run(dirty, block, poisoned, features(2, NUM_NODES, OUT)),
            run(clean, block, weights, features(2, NUM_NODES, OUT)),
        )


@cache
def attended(name: str):
    conv = ALL[name]

    def run(params, table, block, edge_data):
        found = {}
        for layout, (h, laid_block) in laid(block, table, edge_data).items():
            [weights] = attention_of(conv, {"params": params}, h, laid_block)
            found[layout] = (*weights, conv.apply({"params": params}, h, laid_block))
        return found

    return quick(run)


@weighing
def test_attention_comes_in_the_order_of_the_slots_and_sums_to_1(name):
    (params, _), (_, kind, options) = layer(name), ATTENTION[name]
    table, run = features(1, NUM_NODES + 1), attended(name)
    own = options.get("own", True) and kind is not formulas.transformer
    for of in AWKWARD:
        block, attr, _ = case(of)
        at = reference.float64({"params": params, "table": table, **attr})
        _, weights = formulas.attention(kind, at["params"], at["table"], block, at["attr"], options)
        results = run(params, table, block, attr)
        for layout, (slots, mine, mask, _) in results.items():
            slots, mask = np.asarray(slots).reshape(*block.mask.shape, -1), np.asarray(mask)
            np.testing.assert_array_equal(mask.reshape(block.mask.shape), block.mask)
            assert (mine is not None) == own
            whole = np.concatenate([slots, np.asarray(mine)[:, None]], 1) if own else slots
            np.testing.assert_allclose(whole, weights, rtol=1e-4, atol=1e-6, err_msg=f"{of}, {layout}")
            some_read = block.mask.any(1) | own
            np.testing.assert_allclose(whole.sum(1)[some_read], 1, rtol=1e-6)
            assert not whole[~some_read].any()
            assert not slots[~block.mask].any()


@weighing
def test_permuted_slots_permute_attention_and_change_nothing_else(name):
    (params, _), table, run = layer(name), features(1, NUM_NODES + 1), attended(name)
    block, attr, _ = case("isolated nodes")
    turn = np.random.default_rng(1).permutation(FANOUT)
    turned = block._replace(src=block.src[:, turn], mask=block.mask[:, turn])
    before = run(params, table, block, attr)
    after = run(params, table, turned, {"attr": attr["attr"][:, turn]})
    for layout in LAYOUTS:
        (slots, own, _, out), (new, new_own, _, new_out) = before[layout], after[layout]
        np.testing.assert_allclose(new_out, out, rtol=1e-5, atol=1e-6)
        shape = (NUM_NODES, FANOUT, -1)
        np.testing.assert_allclose(
            np.reshape(new, shape), np.reshape(slots, shape)[:, turn], rtol=1e-5, atol=1e-7
        )
        if own is not None:
            np.testing.assert_allclose(new_own, own, rtol=1e-5, atol=1e-7)


def simple(kind, **options):
    """A layer of one head whose values are the rows, whose logits are all 0, and its parameters."""
    conv = kind(WIDTH, bias=False, **options)
    shapes = jax.eval_shape(conv.init, jax.random.key(0), features(1), hop("random"))["params"]
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    name = {GATConv: "dense", GATv2Conv: "src", TransformerConv: "value"}[kind]
    params[name]["kernel"] = np.eye(WIDTH, dtype=np.float32)
    return conv, {"params": params}


PLAIN = {
    "gat": (GATConv, {"own": False}),
    "gatv2": (GATv2Conv, {"own": False}),
    "transformer": (TransformerConv, {"self_term": False}),
}


@pytest.mark.parametrize("kind", slow_but(["gatv2"], PLAIN))
def test_logits_that_are_alike_give_the_mean(kind):
    conv, params = simple(PLAIN[kind][0], **PLAIN[kind][1])
    table = features(1)
    both = quick(lambda h, block: (conv.apply(params, h, block), aggregate.mean(h, block)))
    for of in AWKWARD:
        np.testing.assert_allclose(*both(table, hop(of)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", slow_but(["gatv2"], PLAIN))
def test_dropout_on_attention_is_right_on_average_and_the_same_in_value_and_gradient(kind):
    conv, params = simple(PLAIN[kind][0], **PLAIN[kind][1], attention_dropout=0.4)
    tree, h = Tree(np.ones((2, 5), bool)), features(1, 12)

    @quick
    def run(keys, tree):
        def one(key):
            def loss(h):
                out = conv.apply(params, h, tree, deterministic=False, rngs={"dropout": key})
                return out.sum(), out

            return jax.grad(loss, has_aux=True)(jnp.asarray(h))

        return jax.vmap(one)(keys)

    grads, out = map(np.asarray, run(jax.random.split(jax.random.key(0), 3000), tree))
    kept = grads[:, 2:].reshape(-1, 2, 5, WIDTH)  # each slot's share: logits have no gradient here
    np.testing.assert_allclose((kept * h[2:].reshape(2, 5, WIDTH)).sum(2), out, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kept[kept != 0], 1 / (5 * 0.6), rtol=1e-5)
    assert abs((kept != 0).mean() - 0.6) < 0.02
    error = out.std(0) / np.sqrt(len(out))
    assert (np.abs(out.mean(0) - h[2:].reshape(2, 5, WIDTH).mean(1)) < 5 * error).all()
    assert len(np.unique(kept[:, 0, :, 0] != 0, axis=0)) == 2**5


def test_dropout_on_attention_falls_on_the_own_slot_too():
    conv, params = simple(GATv2Conv, attention_dropout=0.5)
    nothing, h = Tree(np.zeros((400, 1), bool)), np.ones((800, WIDTH), np.float32)
    run = quick(partial(conv.apply, deterministic=False))
    out = np.asarray(run(params, h, nothing, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(out)) == {0.0, 2.0}
    assert abs((out > 0).mean() - 0.5) < 0.1


@weighing
def test_logits_are_float32_under_bfloat16(name):
    kind, formula, options = ATTENTION[name]
    (params, _), (block, attr, _) = layer(name), case("random")
    half = kind(OUT, **options, dtype=jnp.bfloat16)
    table = features(1, NUM_NODES + 1)

    @quick
    def run(params, table, laid_block):
        h = table.astype(jnp.bfloat16)
        return attention_of(half, {"params": params}, h, laid_block), half.apply(
            {"params": params}, h, laid_block
        )

    params = jax.tree.map(lambda x: 0.5 * x, params)
    [weights], out = run(params, table, block._replace(edge_data=attr))
    assert out.dtype == jnp.bfloat16
    assert weights.slots.dtype == jnp.float32
    total = weights.slots.sum(1) + (0 if weights.own is None else weights.own)
    np.testing.assert_allclose(np.asarray(total)[block.mask.any(1)], 1, rtol=1e-6)
    at = reference.float64({"params": params, "table": table, **attr})
    rows, _ = formulas.attention(formula, at["params"], at["table"], block, at["attr"], options)
    np.testing.assert_allclose(np.asarray(out).astype(np.float32), rows, rtol=0.1, atol=0.1)


def test_a_logit_that_bfloat16_does_not_have_still_counts():
    conv, params = simple(GATConv, own=False, dtype=jnp.bfloat16)
    params["params"]["att_src"] = np.full((1, WIDTH), 1.0, np.float32)
    rows = np.zeros((3, WIDTH), np.float32)
    rows[1:], rows[2, 0] = 128.0, 129.0  # 640 and 641, which bfloat16 rounds to 640
    [weights] = quick(partial(attention_of, conv))(params, rows.astype(jnp.bfloat16), PAIR)
    expected = np.array([1, np.e]) / (1 + np.e)
    np.testing.assert_allclose(np.asarray(weights.slots)[0, :, 0], expected, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name, conv in ALL.items() if getattr(conv, "edge", None)])
def test_missing_edge_data_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"reads edge_data\['attr'\], and the block has none: give the"):
        jax.eval_shape(ALL[name].init, jax.random.key(0), features(1), hop("random"))


@pytest.mark.parametrize("kind", [GATConv, GATv2Conv, TransformerConv])
def test_features_that_no_number_of_heads_divides_are_refused(kind):
    with pytest.raises(ValueError, match=r"features=10, heads=4, or pass concat=False"):
        jax.eval_shape(kind(10, heads=4).init, jax.random.key(0), features(1), hop("random"))


def test_a_gate_needs_what_it_gates():
    conv = TransformerConv(4, beta=True, self_term=False)
    with pytest.raises(ValueError, match="needs self_term=True"):
        jax.eval_shape(conv.init, jax.random.key(0), features(1), hop("random"))


def test_a_graph_convolution_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"build it from jsage.graph.gcn_weights\(graph\)"):
        jax.eval_shape(GCNConv(4).init, jax.random.key(0), features(1), hop("random"))


@pytest.mark.parametrize("name", slow_but(["gatv2"], [*ATTENTION, "gine", "sage max pool"]))
@pytest.mark.parametrize("draw", slow_but(["without_replacement"], DRAWS))
def test_sampled_in_the_step_by_vmap_over_keys_or_a_loop_in_one_trace(name, draw):
    conv, traces = ALL[name], []
    params, _ = layer(name)
    edges, table = edged("random"), features(1)

    def step(key):
        traces.append(key)
        block = sample_neighbors(key, edges, np.arange(NUM_NODES, dtype=np.int32), FANOUT, draw=DRAWS[draw])
        return conv.apply({"params": params}, jnp.asarray(table), block)

    one, keys = quick(step), jax.random.split(jax.random.key(3), 4)
    loop = np.stack([one(key) for key in keys])
    assert len(traces) == 1
    np.testing.assert_allclose(quick(jax.vmap(step))(keys), loop, rtol=1e-5, atol=1e-5)
    assert (np.ptp(loop, axis=0).max() > 0) == (draw != "latest")


@cache
def edged(of: str):
    """A graph of `AWKWARD` with features of its edges."""
    src, dst, num_nodes = AWKWARD[of]
    return from_edges(src, dst, num_nodes, attr=features(8, len(src), EDGE))


def model_of(name: str):
    """Two layers of this kind."""
    conv = ALL[name]

    def make(features: int, dropout: float = 0.0):
        return conv.clone(features=features, dropout=dropout, parent=None, name=None)

    return GraphSAGE(hidden=12, out=12, conv=make)


STACKED = slow_but(
    [], [*ATTENTION, "gine", "sage mean", "sage max", "sage std", "sage softmax", "sage max pool"]
)


@pytest.mark.parametrize("name", STACKED)
def test_exact_inference_and_new_nodes_are_the_whole_graph(name):
    model, table = model_of(name), features(1)
    whole = edged("random")
    blocks = (full_block(whole),) * 2
    params = {
        "params": reference.filled(jax.eval_shape(model.init, jax.random.key(0), table, blocks)["params"])
    }
    params = jax.tree.map(lambda x: 0.5 * x, params)
    rows = np.asarray(quick(model.apply)(params, table, blocks))
    np.testing.assert_allclose(embed_all(model, params, whole, table), rows, rtol=1e-4, atol=1e-4)
    src, dst, _ = AWKWARD["random"]
    attr, new = features(8, len(src), EDGE), NUM_NODES - 1
    old = (src != new) & (dst != new)
    known = from_edges(src[old], dst[old], new, attr=attr[old])
    ends = (np.where(end == new, -1, end)[~old] for end in (src, dst))
    nodes = NewNodes(table[new:], next(ends), next(ends), {"attr": attr[~old]})
    found = embed_new(model, params, known, jnp.asarray(table[:new]), nodes)
    np.testing.assert_allclose(found, rows[new:], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [GATv2Conv, TransformerConv, GATConv])
@pytest.mark.parametrize("nodes", [2_000, 20_000], ids=["rows made once", "rows made by slot"])
def test_no_array_has_every_slots_heads(kind, nodes):
    seeds, fanouts, width = 128, (4, 25), 96
    model = GraphSAGE(hidden=width, out=width, conv=partial(kind, heads=8))
    src, dst = np.random.default_rng(0).integers(0, nodes, (2, 40_000))
    big = from_edges(src, dst, nodes)
    table = features(0, nodes, 32)

    def loss(params, key, table):
        blocks = sample_blocks(key, big, np.arange(seeds, dtype=np.int32), fanouts)
        return model.apply(params, table, blocks).sum()

    blocks = jax.eval_shape(
        lambda key: sample_blocks(key, big, np.arange(seeds, dtype=np.int32), fanouts), jax.random.key(0)
    )
    params = jax.eval_shape(model.init, jax.random.key(0), table, blocks)
    compiled = jax.jit(jax.grad(loss)).lower(params, jax.random.key(0), table).compile()
    slots = seeds * (1 + fanouts[0]) * fanouts[1]  # of the first layer, which is the larger
    shapes = set(re.findall(r"f32\[([\d,]+)\]", compiled.as_text()))
    shapes -= {f"{nodes},32"}
    assert max(np.prod([int(size) for size in shape.split(",")]) for shape in shapes) < slots * width
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * slots * width


def test_a_tree_and_its_attention_by_hand():
    conv, params = simple(GATv2Conv)
    params["params"]["att"] = np.eye(WIDTH, dtype=np.float32)[:1]
    params["params"]["dst"] = {"kernel": np.zeros((WIDTH, WIDTH), np.float32)}
    rows = np.zeros((3, WIDTH), np.float32)
    rows[:, 0] = np.log([1.0, 2.0, 5.0])
    [weights] = quick(partial(attention_of, conv))(params, rows, PAIR)
    np.testing.assert_allclose(np.asarray(weights.slots)[0, :, 0], [2 / 8, 5 / 8], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(weights.own)[0], [1 / 8], rtol=1e-5)


class Many(nn.Module):
    """Layer `k` has `k + 1` heads."""

    def setup(self):
        self.convs = [GATv2Conv(k + 1, heads=k + 1) for k in range(11)]

    def __call__(self, h, block):
        return [conv(h, block) for conv in self.convs]


def test_attention_of_a_model_comes_layer_by_layer():
    table, block = features(1), hop("random")
    variables = jax.eval_shape(Many().init, jax.random.key(0), table, block)
    found = jax.eval_shape(lambda v, h: attention_of(Many(), v, h, block), variables, table)
    assert [x.slots.shape[2] for x in found] == list(range(1, 12))


def test_as_tree_keeps_the_edges_data():
    block, attr, _ = case("random")
    _, tree = as_tree(block._replace(edge_data=attr))
    np.testing.assert_array_equal(tree.edge_data["attr"], attr["attr"])
