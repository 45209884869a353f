"""Layer-wise inference against Algorithm 1 in NumPy, for every aggregator and option, in both modes."""

import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import AGGREGATORS, AWKWARD, NUM_NODES, features, slow_but

from jsage import aggregate, full_block, sample_blocks
from jsage.graph import from_edges
from jsage.infer import StreamOptions, embed_all, embed_to_file
from jsage.nn import LSTM, GraphSAGE, Pool, SAGEConv, jump_concat, jump_max

engine = sys.modules["jsage.infer.embed_all"]

ALL = {**AGGREGATORS, "max pool": Pool(), "mean pool": Pool(reduce=aggregate.mean), "lstm": LSTM()}
HUB = NUM_NODES * len(AWKWARD)  # the node that every edge of its own comes into
NODES = HUB + 4
OPTIONS = {
    "plain": {},
    "narrowing": {"hidden": 3},
    "layer norm, rows of a width that is padded": {"hidden": 24, "out": 20, "norm": nn.LayerNorm},
    "residual, concat, normalize, project": {
        "residual": True,
        "conv": {"concat": True, "normalize": True, "project": True},
    },
    "jump_concat, residual, batch norm": {"jump": jump_concat, "residual": True, "norm": nn.BatchNorm},
    "jump_max, three layers, identity beside features": {
        "jump": jump_max,
        "num_layers": 3,
        "identity": (NODES, 4),
    },
    "identity alone": {"identity": (NODES, 4)},
}
CASES = [(name, "plain") for name in ALL] + [("mean", option) for option in OPTIONS if option != "plain"]
CASES += [("lstm", "residual, concat, normalize, project"), ("gcn", "narrowing")]
CASES += [("max pool", "layer norm, rows of a width that is padded")]


def edges():
    """All awkward graphs beside each other, and a hub that reads some nodes hundreds of times."""
    found = [
        np.concatenate([ends[i] + NUM_NODES * n for n, ends in enumerate(AWKWARD.values())]) for i in (0, 1)
    ]
    src = np.concatenate([found[0], np.random.default_rng(3).integers(0, NODES, 300)]).astype(np.int32)
    dst = np.concatenate([found[1], np.full(300, HUB)]).astype(np.int32)
    return src, dst, 0.2 * features(7, len(src), 1)[:, 0]


SRC, DST, WEIGHT = edges()
GRAPH = from_edges(SRC, DST, NODES, weight=WEIGHT)
LISTS = reference.edges(SRC, DST, NODES, WEIGHT)
SUBSET = np.array([HUB, 3, 17, 3, 50, NODES - 1])
SMALL = StreamOptions(rows=16, edges=64, seconds=0.0)


def case(name, option):
    """A model, its parameters, its features and what it should give."""
    more = dict(OPTIONS[option])
    conv = partial(SAGEConv, aggregate=ALL[name], **more.pop("conv", {}))
    model = GraphSAGE(**{"hidden": 6, "out": 3, "conv": conv, **more})
    table = None if option == "identity alone" else features(1, NODES)
    shape = None if table is None else table[:3]
    blocks = jax.eval_shape(
        partial(sample_blocks, fanouts=(2,) * model.num_layers), jax.random.key(0), GRAPH, np.arange(2)
    )
    params = reference.filled(jax.eval_shape(model.init, jax.random.key(0), shape, blocks))
    names = {nn.LayerNorm: "layer", nn.BatchNorm: "batch", jump_concat: "concat", jump_max: "max", None: None}
    expected = reference.graphsage(
        reference.float64(params),
        None if table is None else reference.float64(table),
        [LISTS] * model.num_layers,
        name,
        norm=names[more.get("norm")],
        jump=names[more.get("jump")],
        residual=more.get("residual", False),
        **{key: key in OPTIONS[option].get("conv", {}) for key in ("concat", "normalize")},
    )
    return model, params, table, expected


def close(found, expected):
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)


pytestmark = pytest.mark.usefixtures("quick_compiles", "small_parts")


TO_FILE = [
    ("mean", "plain"),
    ("lstm", "plain"),
    ("mean", "jump_max, three layers, identity beside features"),
    ("mean", "residual, concat, normalize, project"),
    ("max pool", "layer norm, rows of a width that is padded"),
]
"""The cases whose rows are written to a file too: what else a layer is, both ways compute alike."""


@pytest.mark.parametrize(("name", "option"), slow_but(TO_FILE, CASES))
def test_rows_are_those_of_algorithm_1(name, option, tmp_path):
    model, params, table, expected = case(name, option)
    close(embed_all(model, params, GRAPH, table), expected)
    if (name, option) not in TO_FILE:
        return
    embed_to_file(str(tmp_path / "all.npy"), model, params, GRAPH, table, SMALL)
    close(np.load(tmp_path / "all.npy"), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["all.npy"]


SOME = [("mean", "plain"), ("lstm", "plain"), ("mean", "jump_max, three layers, identity beside features")]


@pytest.mark.parametrize(("name", "option"), slow_but(SOME[:1], SOME))
def test_rows_of_some_nodes(name, option, tmp_path):
    model, params, table, expected = case(name, option)
    close(embed_all(model, params, GRAPH, table, nodes=SUBSET), expected[SUBSET])
    for i, nodes in enumerate((SUBSET, None)):
        options = SMALL._replace(nodes=nodes, gather_on_host=True)
        embed_to_file(str(tmp_path / f"{i}.npy"), model, params, GRAPH, table, options)
        close(np.load(tmp_path / f"{i}.npy"), expected if nodes is None else expected[SUBSET])


def test_sampling_as_many_as_there_are_gives_the_same():
    model, params, table, expected = case("mean", "plain")
    nodes = np.arange(NUM_NODES, 2 * NUM_NODES)  # none of them reads the hub
    degree = int(np.diff(np.asarray(GRAPH.indptr))[:HUB].max())
    sample = jax.jit(partial(sample_blocks, fanouts=(degree, degree)))
    blocks = sample(jax.random.key(0), GRAPH, nodes)
    close(jax.jit(model.apply)(params, table, blocks), expected[nodes])


@pytest.mark.slow
def test_a_graph_without_edges(tmp_path):
    model, params, table, _ = case("mean", "plain")
    bare = from_edges([], [], NODES, weight=np.zeros(0, np.float32))
    kernels = [reference.float64(params)["params"][f"convs_{k}"] for k in range(2)]
    h = np.maximum(table @ kernels[0]["self"]["kernel"] + kernels[0]["bias"], 0)
    expected = h @ kernels[1]["self"]["kernel"] + kernels[1]["bias"]
    close(embed_all(model, params, bare, table), expected)
    embed_to_file(str(tmp_path / "all.npy"), model, params, bare, table, SMALL)
    close(np.load(tmp_path / "all.npy"), expected)


def test_a_subset_computes_no_more_than_it_reads():
    chain = from_edges(np.arange(9), np.arange(1, 10), 10)
    assert [ids.tolist() for ids in engine.closure(chain, np.array([9, 4]), 3)] == [
        [2, 3, 4, 7, 8, 9],
        [3, 4, 8, 9],
        [4, 9],
    ]


@pytest.mark.slow
def test_programs_do_not_depend_on_degrees_and_hold_no_edge_rows():
    traces = []

    def act(rows):
        traces.append(rows.shape)
        return jax.nn.relu(rows)

    model, nodes, num_edges = GraphSAGE(hidden=8, out=4, act=act), 512, 60_000
    table, random = features(0, nodes, 16), np.random.default_rng(0)
    some = from_edges([0], [1], 2)
    blocks = jax.jit(partial(sample_blocks, fanouts=(1, 1)))(jax.random.key(0), some, np.arange(2))
    params = jax.jit(model.init)(jax.random.key(0), table[:2], blocks)
    table = jax.device_put(table)
    src = random.integers(0, nodes, num_edges)
    even = from_edges(src, random.integers(0, nodes, num_edges), nodes)
    hub = from_edges(src, np.zeros(num_edges, int), nodes)
    embed_all(model, params, even, table)
    traces.clear()
    embed_all(model, params, hub, jax.device_put(2 * np.asarray(table)))
    embed_all(model, jax.tree.map(np.negative, params), even, table)
    assert not traces
    args = model, 0, params, engine.Kept(table, None), hub, None
    memory = engine._layer.lower(*args).compile().memory_analysis()
    assert memory.temp_size_in_bytes < num_edges * 16  # a quarter of what one row an edge would be


@pytest.mark.slow
def test_subsets_of_about_a_size_share_a_program():
    model, params, table, _ = case("mean", "plain")
    ring = from_edges(np.arange(4096), (np.arange(4096) + 1) % 4096, 4096)
    table = np.resize(table, (4096, table.shape[1]))
    before = None
    for size in (900, 910, 930, 950):
        embed_all(model, params, ring, table, nodes=np.arange(0, 4 * size, 4))
        before = engine._layer._cache_size() if before is None else before
    assert engine._layer._cache_size() == before


def test_bad_input_is_told(tmp_path):
    model, params, table, _ = case("mean", "plain")
    path = str(tmp_path / "all.npy")
    for nodes, message in (
        (np.array([0, NODES]), rf"nodes must be node ids in 0 .. {NODES - 1}, got {NODES}"),
        (np.array([-1]), "got -1"),
        (np.zeros(0, int), r"nodes must hold one id at least, got none"),
        (np.array([0.5]), r"nodes must hold integers, got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            embed_all(model, params, GRAPH, table, nodes=nodes)
        with pytest.raises(ValueError, match=message):
            embed_to_file(path, model, params, GRAPH, table, SMALL._replace(nodes=nodes))
    with pytest.raises(ValueError, match=r"features must be \[num_nodes, d\]"):
        embed_all(model, params, GRAPH, table[:-1])
    with pytest.raises(ValueError, match="no features and no identity"):
        embed_all(model, params, GRAPH, None)
    assert not list(tmp_path.iterdir())


class Stop(Exception):
    """Ends a run from its callback."""


def stop_after(parts):
    count = iter(range(parts))

    def progress(_):
        if next(count, None) is None:
            raise Stop

    return progress


@pytest.mark.parametrize("option", ["narrowing", "jump_concat, residual, batch norm"])
@pytest.mark.slow
def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_bits(option, tmp_path):
    model, params, table, _ = case("mean", option)
    told, some = [], SMALL._replace(rows=30, edges=150)
    run = partial(embed_to_file, model=model, params=params, graph=GRAPH, features=table)
    run(str(tmp_path / "once.npy"), options=some._replace(progress=told.append))
    expected, path = (tmp_path / "once.npy").read_bytes(), tmp_path / "again.npy"
    assert [p.done for p in told if p.stage == "layer-1"][-1] == NODES == told[-1].total
    for parts in range(0, len(told), 2):
        again = []
        with pytest.raises(Stop):
            run(str(path), options=some._replace(progress=stop_after(parts)))
        assert not path.exists()
        run(str(path), options=some._replace(progress=again.append))
        assert len(again) == len(told) - parts - 1  # what was written is not computed again
        assert path.read_bytes() == expected
        path.unlink()
    assert [found.name for found in tmp_path.iterdir()] == ["once.npy"]


@pytest.fixture
def left(tmp_path):
    """A run that was stopped, its folder, and a call that goes on."""
    model, params, table, _ = case("mean", "plain")
    path = str(tmp_path / "all.npy")
    with pytest.raises(Stop):
        embed_to_file(path, model, params, GRAPH, table, SMALL._replace(progress=stop_after(5)))
    call = {"model": model, "params": params, "graph": GRAPH, "features": table, "options": SMALL}
    return tmp_path / ".all.npy.part", lambda **other: embed_to_file(path, **{**call, **other})


@pytest.mark.slow
def test_what_another_run_left_is_refused(left):
    folder, read_more = left
    model, params, table, _ = case("sum", "plain")
    heavier = from_edges(SRC, DST, NODES, weight=2 * WEIGHT)
    for other, what in (
        ({"params": jax.tree.map(lambda x: x + 1, params)}, "parameters"),
        ({"model": model}, "model"),
        ({"features": table + 1}, "values"),
        ({"graph": heavier}, "values"),
        ({"options": SMALL._replace(nodes=SUBSET)}, "nodes"),
        ({"options": SMALL._replace(rows=8)}, "parts"),
    ):
        with pytest.raises(
            ValueError, match=f"left by another run: its {what} is .*delete it to start again"
        ):
            read_more(**other)
    read_more()
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("within_jit", [False, True])
def test_a_run_with_other_constants_is_refused(within_jit, tmp_path):
    """Arrays that a model closes over, which no text of its program shows."""
    _, params, table, _ = case("mean", "plain")

    def run(scale, options):
        act = lambda rows: nn.relu(rows) * jax.device_put(scale)[None]  # noqa: E731
        model = GraphSAGE(hidden=6, out=3, act=jax.jit(act) if within_jit else act)
        embed_to_file(str(tmp_path / "all.npy"), model, params, GRAPH, table, options)

    scale = features(5, 6, 1)[:, 0]
    with pytest.raises(Stop):
        run(scale, SMALL._replace(progress=stop_after(1)))
    with pytest.raises(ValueError, match="left by another run: its model is"):
        run(2 * scale, SMALL)
    with pytest.raises(Stop):
        run(scale.copy(), SMALL._replace(progress=stop_after(1)))


@pytest.mark.slow
@pytest.mark.parametrize("jump", [None, jump_concat])
def test_bfloat16_rows_are_written_as_float32(jump, tmp_path):
    """Layers in between read bfloat16; what pooling sends is a stage of its own."""
    conv = partial(SAGEConv, aggregate=Pool(dtype=jnp.bfloat16), dtype=jnp.bfloat16)
    model, table = GraphSAGE(hidden=6, out=3, conv=conv, jump=jump), features(1, NODES).astype(jnp.bfloat16)
    blocks = jax.eval_shape(partial(sample_blocks, fanouts=(2, 2)), jax.random.key(0), GRAPH, np.arange(2))
    params = reference.filled(jax.eval_shape(model.init, jax.random.key(0), table[:3], blocks))
    expected = embed_all(model, params, GRAPH, table)
    assert expected.dtype == (jnp.bfloat16 if jump is None else jnp.float32)
    path = str(tmp_path / "all.npy")
    with pytest.raises(Stop):
        embed_to_file(path, model, params, GRAPH, table, SMALL._replace(progress=stop_after(14)))
    embed_to_file(path, model, params, GRAPH, table, SMALL)
    found = np.load(path)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))


def test_other_numbers_in_any_row_are_another_run(tmp_path):
    """Of more rows than 2^16, where once only some were read."""
    count, path = 140_000, str(tmp_path / "all.npy")
    features, graph = np.zeros((count, 1), np.float32), from_edges([1], [0], count)
    model, options = GraphSAGE(hidden=1, out=1, num_layers=1), StreamOptions(rows=2**15, seconds=0.0)
    params = model.init(jax.random.key(0), jax.numpy.zeros((3, 1)), (full_block(from_edges([1], [0], 3)),))
    with pytest.raises(Stop):
        embed_to_file(path, model, params, graph, features, options._replace(progress=stop_after(2)))
    for row in (1, count // 2 + 1, count - 1):
        other = features.copy()
        other[row] = 1.0
        with pytest.raises(ValueError, match="left by another run: its values is"):
            embed_to_file(path, model, params, graph, other, options)
    embed_to_file(path, model, params, graph, features, options)


@pytest.mark.slow
def test_damage_is_seen(left):
    folder, read_more = left
    data = folder / "layer-0.npy"
    whole_file, progress = data.read_bytes(), (folder / "progress.json").read_text()
    for bad in (whole_file[:-50_000:2], bytes([*whole_file[:200], whole_file[200] ^ 1, *whole_file[201:]])):
        data.write_bytes(bad)
        with pytest.raises(ValueError, match=r"layer-0.npy is damaged"):
            read_more()
    data.write_bytes(whole_file)
    for bad in ("", "{}", "[1]", progress[:-9], progress.replace('"layer-0": [', '"layer-0": [1')):
        (folder / "progress.json").write_text(bad)
        with pytest.raises(ValueError, match=r"progress.json is damaged: delete the folder"):
            read_more()
    (folder / "progress.json").write_text(progress)
    read_more()
