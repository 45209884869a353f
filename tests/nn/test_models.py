"""The model against Algorithm 1 in NumPy, sampled and full-batch; its options, its compiled program, nnx."""

import re
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from helpers import AGGREGATORS, AWKWARD, NUM_NODES, WIDTH, features, slow_but

from jsage import aggregate
from jsage.blocks import Indexed, as_segments, as_tree
from jsage.graph import Graph, from_edges
from jsage.nn import LSTM, GraphSAGE, Pool, SAGEConv, jump_concat, jump_max
from jsage.sampling import full_block, sample_blocks

ALL = {**AGGREGATORS, "max pool": Pool(), "mean pool": Pool(reduce=aggregate.mean), "lstm": LSTM()}
NODES = NUM_NODES * len(AWKWARD)

CONVS = {"concat": True, "normalize": True, "project": True}
OPTIONS = {
    "plain": {},
    "three layers, layer norm": {"num_layers": 3, "norm": nn.LayerNorm},
    "batch norm": {"norm": nn.BatchNorm},
    "residual, three layers": {"residual": True, "num_layers": 3},
    "residual, concat, normalize, project": {"residual": True, "conv": CONVS},
    "jump_concat, residual, batch norm": {"jump": jump_concat, "residual": True, "norm": nn.BatchNorm},
    "jump_max": {"jump": jump_max},
    "identity beside features": {"identity": (NODES, 4)},
    "identity alone": {"identity": (NODES, 4)},
}
PLAIN = [(name, "plain") for name in ALL]
MEANS = [("mean", option) for option in OPTIONS if option != "plain"]

quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
"""For programs that run once: compiled quickly rather than well."""


@cache
def edges() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All awkward graphs beside each other as one, with weights."""
    src, dst = (
        np.concatenate([ends[i] + NUM_NODES * n for n, ends in enumerate(AWKWARD.values())]) for i in (0, 1)
    )
    return src, dst, features(7, len(src), 1)[:, 0]


@cache
def awkward(weighted: bool = True) -> Graph:
    src, dst, weight = edges()
    return from_edges(src, dst, NODES, **({"weight": weight} if weighted else {}))


def make(name: str, option: str = "plain", **more) -> GraphSAGE:
    options = {**OPTIONS[option], **more}
    conv = partial(SAGEConv, aggregate=ALL[name], **options.pop("conv", {}))
    return GraphSAGE(hidden=6, out=3, conv=conv, **options)


def table_of(option: str):
    return None if option == "identity alone" else features(1, NODES)


draw = quick(sample_blocks, static_argnames="fanouts")


@cache
def sampled(num_layers: int, weighted: bool = True):
    """Blocks of a few seeds, one of them twice, and their neighbor lists."""
    seeds = np.array([0, 9, 17, 24, 25, 33, 40, 41, 42, 41, 55])
    blocks = draw(jax.random.key(2), awkward(weighted), seeds, (3, 2, 2)[:num_layers])
    first, *rest = blocks
    weight = [block.edge_data.get("weight") for block in blocks]
    lists = [reference.slots(first.dst, first.src, first.mask, weight[0])]
    return blocks, [*lists, *map(reference.tree, (block.mask for block in rest), weight[1:])]


@cache
def whole(num_layers: int):
    src, dst, weight = edges()
    block, lists = full_block(awkward(), slots=True), reference.edges(src, dst, NODES, weight)
    return (block,) * num_layers, [lists] * num_layers


def parameters(model: GraphSAGE, table, blocks):
    return reference.filled(jax.eval_shape(model.init, jax.random.key(0), table, blocks))


def settings(option: str) -> dict:
    """The options under their names in the reference."""
    options = OPTIONS[option]
    norms = {nn.LayerNorm: "layer", nn.BatchNorm: "batch", None: None}
    jumps = {jump_concat: "concat", jump_max: "max", None: None}
    return {
        "norm": norms[options.get("norm")],
        "jump": jumps[options.get("jump")],
        "residual": options.get("residual", False),
        **{key: key in options.get("conv", {}) for key in ("concat", "normalize")},
    }


@pytest.mark.parametrize(("name", "option"), slow_but(PLAIN, PLAIN + MEANS))
def test_values_and_gradients_are_those_of_algorithm_1(name, option):
    model, table = make(name, option), table_of(option)
    layouts = [sampled(model.num_layers), whole(model.num_layers)]
    variables = parameters(model, table, layouts[0][0])
    width = 6 if "concat" in option and "jump" not in option else 3
    cotangents = [features(3, blocks[-1].num_dst, width) for blocks, _ in layouts]

    def loss(at, stats, blocks, cotangent):
        out = model.apply({**stats, "params": at["params"]}, at.get("table"), blocks)
        return (out * cotangent).sum(), out

    at = {"params": variables.pop("params"), **({} if table is None else {"table": table})}
    run = quick(
        lambda at, *batches: [jax.grad(loss, has_aux=True)(at, variables, *batch) for batch in batches],
    )
    batches = [(blocks, cotangent) for (blocks, _), cotangent in zip(layouts, cotangents, strict=True)]
    for (grads, out), (_, lists), cotangent in zip(run(at, *batches), layouts, cotangents, strict=True):

        def algorithm_1(at, lists=lists):
            everything = {**reference.float64(variables), "params": at["params"]}
            return reference.graphsage(everything, at.get("table"), lists, name, **settings(option))

        np.testing.assert_allclose(out, algorithm_1(reference.float64(at)), rtol=1e-5, atol=1e-5)
        reference.check_gradients(algorithm_1, cotangent, at, grads)


def test_batch_norm_in_training_takes_valid_rows_alone():
    model, table, option = make("mean", "jump_concat, residual, batch norm"), features(1, NODES), settings
    (blocks, lists), seeds = sampled(2), np.arange(11) % 3 != 1
    variables, cotangent = parameters(model, table, blocks), features(3, 11, 3) * seeds[:, None]

    @quick
    def run(params, table, blocks):
        def loss(params):
            out, stats = model.apply(
                {**variables, "params": params},
                table,
                blocks,
                mask=jnp.asarray(seeds),
                deterministic=False,
                mutable=["batch_stats"],
            )
            return (out * cotangent).sum(), (out, stats["batch_stats"])

        return jax.grad(loss, has_aux=True)(params)

    def algorithm_1(params):
        everything = {**reference.float64(variables), "params": params}
        options = option("jump_concat, residual, batch norm")
        return reference.graphsage(everything, np.float64(table), lists, "mean", seeds=seeds, **options)

    params = variables["params"]
    grads, (out, stats) = run(params, table, blocks)
    np.testing.assert_allclose(
        np.asarray(out)[seeds], algorithm_1(reference.float64(params))[seeds], rtol=1e-5, atol=1e-5
    )
    reference.check_gradients(algorithm_1, cotangent, params, grads)
    valid = reference.reached(lists, seeds)[0]
    assert 0 < np.sum(valid) < len(valid)
    hidden = reference.convolve(reference.float64(params)["convs_0"], np.float64(table), lists[0], "mean")
    for name, moment in zip(("mean", "var"), reference.moments(hidden, valid), strict=True):
        old = variables["batch_stats"]["norms_0"][name]
        np.testing.assert_allclose(stats["norms_0"][name], 0.99 * old + 0.01 * moment, rtol=1e-5, atol=1e-5)

    rows, tree = as_tree(blocks[0])  # the same hop fetched row by row: poison what padded slots hold
    fetched = table[np.asarray(rows)]
    dirty = fetched.copy()
    dirty[tree.num_dst :][~np.asarray(tree.mask).ravel()] = np.nan
    clean = run(params, fetched, (tree, *blocks[1:]))
    jax.tree.map(np.testing.assert_array_equal, run(params, dirty, (tree, *blocks[1:])), clean)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), clean, (grads, (out, stats)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_all_neighbors_sampled_are_the_full_batch(name):
    model, table, seeds = make(name), jax.device_put(features(1, NODES)), np.array([1, 17, 24, 32, 41, 46])
    blocks = draw(jax.random.key(3), awkward(), seeds, (10, 10))
    assert (np.diff(awkward().indptr) <= 10).all()
    variables, full = parameters(model, table, blocks), (full_block(awkward(), slots=True),) * 2
    run = quick(lambda *both: [model.apply(variables, table, blocks) for blocks in both])
    some, everyone = run(blocks, full)
    np.testing.assert_allclose(some, np.asarray(everyone)[seeds], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_frontier_in_any_order_and_any_layout_gives_the_same():
    model, table = make("mean", "jump_concat, residual, batch norm"), jax.device_put(features(1, NODES))
    first, last = jax.tree.map(np.asarray, sampled(2)[0])
    variables, mask = parameters(model, table, (first, last)), jax.device_put(np.arange(11) % 3 != 1)
    turn = np.random.default_rng(0).permutation(first.num_dst)
    place, slots = np.argsort(turn).astype(np.int32), last.num_dst + np.arange(last.mask.size)
    turned = Indexed(*(x[turn] for x in first[:3]), {"weight": first.edge_data["weight"][turn]})
    reads = Indexed(place[: last.num_dst], place[slots.reshape(last.mask.shape)], *last)

    @quick
    def run(*batches):
        train = partial(
            model.apply, variables, table, mask=mask, deterministic=False, mutable=["batch_stats"]
        )
        return [train(blocks) for blocks in batches]

    expected, *same = run((first, last), (turned, reads), tuple(map(jax.jit(as_segments), (turned, reads))))
    for found in same:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), found, expected)


class Both(nn.Module):
    """An aggregator made of others."""

    parts: tuple[nn.Module, ...]

    def __call__(self, h, block):
        return jnp.concatenate([part(h, block) for part in self.parts], axis=1)


class Inside(nn.Module):
    """A user's module that makes the model, and its aggregator, in its own call."""

    @nn.compact
    def __call__(self, h, blocks):
        return GraphSAGE(6, 3, conv=partial(SAGEConv, aggregate=Pool()), name="sage")(h, blocks)


class Aside(nn.Module):
    """A user's module that makes them in its setup."""

    def setup(self):
        self.sage = GraphSAGE(6, 3, conv=partial(SAGEConv, aggregate=Pool()))

    def __call__(self, h, blocks):
        return self.sage(h, blocks)


@pytest.mark.parametrize(
    ("module", "path"),
    [
        (make("max pool"), ["dense"]),
        (make("lstm"), ["cell", "ig"]),
        (GraphSAGE(6, 3, conv=partial(SAGEConv, aggregate=Both((Pool(), LSTM())))), ["parts_0", "dense"]),
        (Inside(), ["dense"]),
        (Aside(), ["dense"]),
    ],
    ids=["pool", "lstm", "nested", "in a call", "in a setup"],
)
def test_each_layer_has_an_aggregator_of_its_own(module, path):
    blocks, _ = sampled(2)
    table = features(1, NODES)
    params = jax.eval_shape(module.init, jax.random.key(0), table, blocks)["params"]
    for k, width in enumerate((WIDTH, 6)):
        kernel = params.get("sage", params)[f"convs_{k}"]["aggregate"]
        for name in path:
            kernel = kernel[name]
        assert kernel["kernel"].shape == (width, width)


def test_layers_one_by_one_are_the_whole_model():
    model = make("max", "jump_concat, residual, batch norm", identity=(NODES, 2))
    table, (blocks, _) = jax.device_put(features(1, NODES)), whole(2)
    variables = parameters(model, table, blocks)
    assert set(variables["batch_stats"]) == {"norms_0", "norms_1"}

    @quick
    def run(variables):
        h, kept = jnp.concatenate([table, variables["params"]["embed"]["embedding"]], axis=1), []
        for k, block in enumerate(blocks):
            h = model.apply(variables, k, h, block, method="layer")
            kept.append(h)
        out = model.apply(variables, kept, method=lambda model, kept: model.head(model.jump(kept)))
        return out, model.apply(variables, table, blocks)

    np.testing.assert_allclose(*run(variables), rtol=1e-6)


def test_the_last_layer_alone_is_a_plain_convolution():
    model, table, (blocks, _) = make("mean", "batch norm"), jax.device_put(features(1, NODES)), whole(2)
    variables = parameters(model, table, blocks)
    assert set(variables["params"]) == {"convs_0", "convs_1", "norms_0"}

    @quick
    def run(variables):
        h = model.apply(variables, 0, table, blocks[0], method="layer")
        return model.apply(variables, 1, h, blocks[1], method="layer"), model.apply(variables, table, blocks)

    np.testing.assert_allclose(*run(variables), rtol=1e-6)


def test_as_many_blocks_as_layers():
    blocks, _ = sampled(2)
    with pytest.raises(ValueError, match="3 layers need as many blocks, got 2: one fanout a layer"):
        make("mean", num_layers=3).init(jax.random.key(0), jnp.ones((NODES, WIDTH)), blocks)


def test_no_features_and_no_identity_is_refused():
    with pytest.raises(ValueError, match=r"no features and no identity=\(num_nodes, width\)"):
        make("mean").init(jax.random.key(0), None, sampled(2)[0])


@pytest.mark.slow
def test_dropout_rates_keys_and_determinism():
    model = make("mean", dropout=0.5, input_dropout=0.1, num_layers=3)
    bound = model.bind({})
    assert [conv.dropout for conv in bound.convs] == [0.1, 0.5, 0.5]
    assert [conv.dropout for conv in make("mean", dropout=0.5).bind({}).convs] == [0.5, 0.5]
    blocks, table = sampled(3)[0], jax.device_put(features(1, NODES))
    variables = parameters(model, table, blocks)
    run = quick(
        lambda key: model.apply(variables, table, blocks, deterministic=False, rngs={"dropout": key}),
    )
    first, second = (np.asarray(run(jax.random.key(seed))) for seed in (0, 1))
    assert (first != second).any(axis=1).all()
    np.testing.assert_array_equal(first, run(jax.random.key(0)))
    still = quick(lambda model: model.apply(variables, table, blocks), static_argnums=0)
    np.testing.assert_array_equal(still(model), still(make("mean", num_layers=3)))


def test_bfloat16_layers_hand_on_bfloat16_and_stay_near_float32():
    options = {"residual": True, "norm": nn.LayerNorm}
    table, blocks = jax.device_put(features(1, NODES)), sampled(2)[0]
    fine, coarse = make("mean", **options), make("mean", conv={"dtype": jnp.bfloat16}, **options)
    variables = parameters(coarse, table, blocks)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))

    @quick
    def run(variables):
        hidden = coarse.apply(variables, 0, table, blocks[0], method="layer")
        return hidden, coarse.apply(variables, table, blocks), fine.apply(variables, table, blocks)

    program = str(jax.make_jaxpr(coarse.apply)(variables, table, blocks))
    assert set(re.findall(r"(\w+)\[[\d,]*\] = dot_general", program)) == {"bf16"}
    hidden, out, expected = run(jax.tree.map(lambda x: 0.5 * x, variables))
    assert hidden.dtype == out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out).astype(np.float32), expected, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_it_runs_as_an_nnx_module_with_linens_values_and_gradients():
    (first, *rest), linen = sampled(2)[0], make("max pool", dropout=0.5)
    rows, tree = jax.jit(as_tree)(first)
    h, blocks = jax.device_put(features(1, NODES)[np.asarray(rows)]), (tree, *rest)
    made = nnx.jit(lambda: nnx.bridge.ToNNX(linen, rngs=nnx.Rngs(0, dropout=1)).lazy_init(h, blocks))
    model = made()
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))

    def loss(apply):
        out = apply(h, blocks)
        return (out**2).sum(), out

    grads, out = nnx.jit(nnx.grad(loss, has_aux=True))(model)
    of_params = lambda params: loss(partial(linen.apply, {"params": params}))  # noqa: E731
    expected = quick(jax.grad(of_params, has_aux=True))(params)
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(same, (nnx.to_pure_dict(grads), out), expected)
    noisy = nnx.jit(lambda model: [model(h, blocks, deterministic=False) for _ in range(2)])(model)
    assert not np.array_equal(*noisy)


def loss_of(model, params, table, graph, seeds, key):
    return (model.apply(params, table, sample_blocks(key, graph, seeds, (3, 2))) ** 2).mean()


@pytest.mark.slow
def test_sampling_and_model_under_vmap_and_grad():
    model, table = make("max pool"), jax.device_put(features(1, NODES))
    seeds = jax.device_put(np.arange(40, 48, dtype=np.int32))
    params, keys = parameters(model, table, sampled(2)[0]), jax.random.split(jax.random.key(5), 3)
    slope = partial(jax.grad(partial(loss_of, model)), params, table, awkward(), seeds)
    one, many = quick(slope), quick(jax.vmap(slope))
    expected = jax.tree.map(lambda *grads: np.stack(grads), *map(one, keys))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), many(keys), expected)
    assert np.ptp(expected["params"]["convs_0"]["neigh"]["kernel"], axis=0).max() > 0


def test_one_trace_serves_every_batch():
    model, table, traces = make("mean"), jax.device_put(features(1, NODES)), []
    params = parameters(model, table, sampled(2)[0])

    @quick
    def step(params, table, graph, seeds, key):
        traces.append(seeds.shape)
        loss, grads = jax.value_and_grad(partial(loss_of, model))(params, table, graph, seeds, key)
        return jax.tree.map(lambda x, grad: x - 0.1 * grad, params, grads), loss

    for i in range(4):
        seeds = np.arange(7 * i, 7 * i + 7)
        params, loss = step(params, table, awkward(), seeds, jax.random.key(i))
        assert np.isfinite(loss)
    assert len(traces) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean", "max", "gcn", "max pool", "lstm"])
def test_the_compiled_steps_temporaries_do_not_grow_with_the_graph(name):
    model, shape = make(name), jax.ShapeDtypeStruct
    params = jax.eval_shape(model.init, jax.random.key(0), features(1, NODES), sampled(2)[0])
    step = quick(jax.value_and_grad(partial(loss_of, model)))

    def temporaries(num_nodes: int) -> int:
        ends = shape((num_nodes + 1,), jnp.int32), shape((10 * num_nodes,), jnp.int32)
        weight = {"weight": shape((10 * num_nodes,), jnp.float32)}
        table, seeds = shape((num_nodes, WIDTH), jnp.float32), shape((16,), jnp.int32)
        key = jax.eval_shape(lambda: jax.random.key(0))
        compiled = step.lower(params, table, Graph(*ends, weight), seeds, key).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert 0 < temporaries(1_000) == temporaries(1_000_000)
