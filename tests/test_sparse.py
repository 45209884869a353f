"""Sparse features give what the same features give dense, wherever they go, or are refused."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow_but
from scipy import sparse

from jsage import GraphSAGE, aggregate, data, embed_all, embed_new, embed_to_file, from_edges, full_block
from jsage.blocks import as_segments, sliced_full_block
from jsage.blocks.sparse import sparse_product
from jsage.data import Dataset, to_device_table
from jsage.graph import NewNodes, SparseRows, contiguous, gcn_weights, sparse_rows, validate
from jsage.infer import StreamOptions
from jsage.nn import (
    Dense,
    Dropout,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINEConv,
    PinSAGEConv,
    Pool,
    SAGEConv,
    TransformerConv,
)
from jsage.parallel import make_mesh, on_mesh, replicate, shard_features, split
from jsage.parallel.mesh import AXIS
from jsage.recipes.scaling import Scaling, fit_scaling
from jsage.sampling import sample_blocks, sample_compact_blocks

NODES, COLUMNS = 40, 23
CONVS = {
    "mean": SAGEConv,
    "gcn aggregator": partial(SAGEConv, aggregate=aggregate.gcn),
    "sum": partial(SAGEConv, aggregate=aggregate.sum),
    "pool": partial(SAGEConv, aggregate=Pool()),
    "edges": partial(SAGEConv, edge="weight"),
    "gcn": GCNConv,
    "gat": partial(GATConv, heads=2),
    "gatv2": partial(GATv2Conv, heads=2, residual=True),
    "transformer": partial(TransformerConv, heads=2, beta=True),
    "pinsage": PinSAGEConv,
}


def table(seed=0, rows=NODES):
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(rows, COLUMNS)) * (rng.random((rows, COLUMNS)) < 0.2)
    found[1], found[2] = 0, 1 + rng.random(COLUMNS)  # a row without words, and a long one
    return found.astype(np.float32)


@cache
def graph():
    src, dst = np.random.default_rng(1).integers(0, NODES, (2, 160))
    return gcn_weights(from_edges(src, dst, NODES))


def poisoned(rows):
    """The same rows, shuffled among words that no row has, which are NaN."""
    start, length, indices, values, columns, _ = map(lambda x: None if x is None else np.asarray(x), rows)
    order, at = np.random.default_rng(2).permutation(len(start)), 3
    made = np.full(3 * len(values) + 9, np.nan, np.float32)
    ids, begin = np.full(len(made), columns.shape[0] - 1, np.int32), np.zeros_like(start)
    for row in order:
        span = slice(start[row], start[row] + length[row])
        begin[row], stop = at, at + length[row]
        made[at:stop], ids[at:stop], at = values[span], indices[span], stop + 1
    return SparseRows(begin, length, ids, made, columns)


@cache
def blocks(name):
    key, given = jax.random.key(0), graph()
    return {
        "trees": lambda: sample_blocks(key, given, jnp.arange(3), (2, 2)),
        "table": lambda: sample_blocks(key, given, jnp.arange(12), (4, 4)),
        "segments": lambda: tuple(map(as_segments, sample_blocks(key, given, jnp.arange(12), (4, 4)))),
        "full": lambda: (full_block(given),) * 2,
        "sliced": lambda: (sliced_full_block(given),) * 2,
    }[name]()


@pytest.mark.parametrize("layout", ["trees", "table", "segments", "full", "sliced"])
@pytest.mark.parametrize("conv", slow_but(["mean", "gat"], list(CONVS)))
def test_values_and_gradients_are_those_of_the_dense_table(conv, layout):
    model, given = GraphSAGE(hidden=8, out=4, conv=CONVS[conv]), blocks(layout)
    dense = jax.device_put(table())
    params = jax.jit(model.init)(jax.random.key(1), dense, given)
    traces = []

    @jax.jit
    def both(params, features):
        traces.append(1)
        return jax.value_and_grad(lambda p: jnp.sin(model.apply(p, features, given)).sum())(params)

    wanted, clean = both(params, dense), sparse_rows(dense)
    fresh = jax.jit(model.init)(jax.random.key(1), jax.device_put(clean), given)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, fresh))
    odd = poisoned(clean)
    pad = len(odd.values) - len(clean.values)
    clean = clean._replace(indices=np.pad(clean.indices, (0, pad)), values=np.pad(clean.values, (0, pad)))
    before = len(traces)
    for rows in clean, odd:
        found = both(params, jax.device_put(rows))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)
    assert len(traces) == before + 1


@pytest.mark.parametrize("rows", [0, 1, 700, 1300])
def test_a_product_and_its_gradients_are_those_of_numpy(rows):
    dense = np.resize(table(), (rows, COLUMNS)) if rows else np.zeros((0, COLUMNS), np.float32)
    rng = np.random.default_rng(3)
    kernel, pull = rng.normal(size=(COLUMNS, 5)), rng.normal(size=(rows, 5))
    words = jax.device_put(sparse_rows(dense))

    def total(kernel, values):
        out = sparse_product(words._replace(values=values), kernel)
        return (out * pull).sum(), out

    (_, out), (to_kernel, to_values) = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(
        kernel.astype(np.float32), words.values
    )
    wide = dense.astype(np.float64)
    np.testing.assert_allclose(out, wide @ kernel, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(to_kernel, wide.T @ pull, rtol=1e-4, atol=1e-4)
    if rows:
        np.testing.assert_allclose(to_values, (pull @ kernel.T)[dense != 0], rtol=1e-4, atol=1e-4)


def test_sums_are_wide_whatever_the_dtype():
    rows = jax.device_put(sparse_rows(np.ones((1, 4096), np.float32)))
    out = sparse_product(rows, jnp.ones((4096, 1), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert float(out[0, 0]) == 4096


def test_dropout_drops_values_at_its_rate_and_scales_the_others():
    dense = np.ones((200, 50), np.float32)
    drop = Dropout(0.4, deterministic=False)
    rows = drop.apply({}, jax.device_put(sparse_rows(dense)), rngs={"dropout": jax.random.key(0)})
    out = np.asarray(sparse_product(rows, jnp.eye(50)))
    assert set(np.unique(out.round(4))) == {0, np.float32(1 / 0.6).round(4)}
    assert abs((out == 0).mean() - 0.4) < 4 * np.sqrt(0.24 / out.size)
    assert (out == 0).mean(0).min() > 0.25
    assert (out == 0).mean(1).max() < 0.75
    pulled = jax.grad(lambda kernel: sparse_product(rows, kernel).sum())(jnp.ones((50, 1)))
    np.testing.assert_allclose(pulled[:, 0], out.sum(0), rtol=1e-5)
    still = Dropout(0.4, deterministic=True).apply({}, rows._replace(dropout=None))
    assert still.dropout is None


@pytest.mark.parametrize("conv", slow_but(["mean"], ["mean", "gcn", "gat", "transformer"]))
def test_exact_inference_files_and_new_nodes(conv, tmp_path):
    model, given = GraphSAGE(hidden=8, out=4, conv=CONVS[conv]), graph()
    dense = jax.device_put(table())
    params = jax.jit(model.init)(jax.random.key(1), dense, (full_block(given),) * 2)
    wanted, words = np.asarray(embed_all(model, params, given, dense)), sparse_rows(dense)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(embed_all(model, params, given, words), wanted)
    close(embed_all(model, params, given, words, nodes=np.array([7, 2])), wanted[[7, 2]])
    for options in StreamOptions(rows=16, edges=8), StreamOptions(rows=16, edges=8, gather_on_host=True):
        embed_to_file(f"{tmp_path}/all.npy", model, params, given, words, options)
        close(np.load(f"{tmp_path}/all.npy"), wanted)
    edge_data = {name: np.ones(3, np.float32) for name in given.edge_data}
    new = NewNodes(table(4)[:3], [5, 6, -1], [-1, -1, -2], edge_data)
    wanted = embed_new(model, params, given, dense, new)
    for features in new.features, sparse_rows(new.features), sparse.coo_array(new.features):
        close(embed_new(model, params, given, words, new._replace(features=features)), wanted)


def test_devices_that_share_a_step_read_copies():
    model, dense, given = GraphSAGE(hidden=8, out=4), jax.device_put(table()), graph()
    params = jax.jit(model.init)(jax.random.key(1), dense, (full_block(given),) * 2)
    devices = jax.devices()[: min(2, len(jax.devices()))]
    mesh = make_mesh(devices)

    def step(params, graph, features, seeds):
        return model.apply(params, features, sample_blocks(jax.random.key(0), graph, seeds, (3, 3))).sum(0)

    words = jax.device_put(sparse_rows(dense))
    shared = [replicate(x, mesh) for x in (params, given, words)]
    seeds = split(jnp.arange(8), mesh)
    shares = lambda *given: jax.lax.psum(step(*given), AXIS)  # noqa: E731
    found = jax.jit(on_mesh(shares, mesh, (*shared, seeds)))(*shared, seeds)
    each = np.split(np.arange(8), len(devices))
    wanted = sum(jax.jit(step)(params, given, dense, jnp.asarray(ids)) for ids in each)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_compacted_blocks_read_distinct_rows():
    model, dense, given = GraphSAGE(hidden=8, out=4), jax.device_put(table()), graph()
    hops, fits = sample_compact_blocks(jax.random.key(0), given, jnp.arange(6), (3, 3), (30,))
    assert fits
    params = jax.jit(model.init)(jax.random.key(1), dense, hops)
    wanted, found = (
        jax.jit(model.apply)(params, x, hops) for x in (dense, jax.device_put(sparse_rows(dense)))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"])
def test_any_scipy_matrix_comes_in(form):
    dense = table()
    rows = sparse_rows(sparse.csr_array(dense).asformat(form))
    assert rows.shape == dense.shape
    assert (rows.toarray() == dense).all()
    validate(graph(), rows)
    assert isinstance(to_device_table(rows), SparseRows)


def test_entries_of_one_place_are_added_and_zeros_left_out():
    rows = sparse_rows(sparse.coo_array(([1.0, 2.0, 0.0], ([0, 0, 1], [3, 3, 2])), shape=(2, 4)))
    assert rows.length.tolist() == [1, 0]
    assert rows.toarray()[0].tolist() == [0, 0, 0, 3]
    assert sparse_rows(np.zeros((2, 3))).toarray().sum() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": np.array([0, COLUMNS], np.int32)}, "an index and a value a word"),
        ({"columns": np.zeros((3, 0), np.float32)}, "columns in 0 .. 2, got"),
        ({"columns": np.zeros((0, 0), np.float32)}, "d at least 1"),
        ({"length": np.full(NODES, 10**6, np.int32)}, "lengths of features must be numbers of words"),
        ({"start": np.full(NODES, -1, np.int32)}, "starts of features must be words"),
        ({"start": np.zeros(3, np.int32)}, "one row a node, 40, got shape"),
    ],
)
def test_rows_that_are_none_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        validate(graph(), sparse_rows(table())._replace(**change))


def test_what_float32_does_not_hold_is_refused():
    with pytest.raises(ValueError, match="finite in float32"):
        sparse_rows(sparse.csr_array(np.array([[1e39, 0.0]])))
    with pytest.raises(ValueError, match="must hold numbers"):
        sparse_rows(sparse.csr_array(np.array([[1j, 0.0]])))


def test_who_reads_rows_as_they_are_refuses():
    words, given = jax.device_put(sparse_rows(table())), graph()
    block = (full_block(given),)
    for conv in (
        partial(SAGEConv, aggregate=aggregate.max),
        GINEConv,
        partial(SAGEConv, aggregate=aggregate.std),
    ):
        model = GraphSAGE(hidden=8, out=4, num_layers=1, conv=conv)
        with pytest.raises(TypeError, match=r"dense layers alone.*got SparseRows"):
            model.init(jax.random.key(0), words, block)
    model = GraphSAGE(hidden=8, out=4, num_layers=1, identity=(NODES, 3))
    with pytest.raises(TypeError, match="identity embeddings beside features need dense ones"):
        model.init(jax.random.key(0), words, block)
    model = GraphSAGE(hidden=8, out=4, num_layers=1, in_features=5)
    with pytest.raises(ValueError, match="must have in_features=5 columns"):
        model.init(jax.random.key(0), words, block)
    refused = "reads dense features alone, expected an array"
    with pytest.raises(TypeError, match=f"shard_features {refused}"):
        shard_features(words, contiguous(NODES, 1), make_mesh(jax.devices()[:1]))


def test_files_keep_them(tmp_path):
    dense, given = table(), from_edges([0, 1], [1, 0], NODES)
    ids = np.split(np.arange(NODES, dtype=np.int32), [10, 20])
    dataset = Dataset(given, sparse_rows(sparse.csr_array(dense)), np.zeros(NODES, np.int32), *ids)
    data.validate_dataset(dataset)
    data.save(tmp_path / "graph", dataset)
    found = data.open(tmp_path / "graph").features
    assert isinstance(found.values, np.memmap)
    assert (found.toarray() == dense).all()
    assert found.shape == dense.shape
    (tmp_path / "graph" / "features_values.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"features_values\.npy is missing"):
        data.open(tmp_path / "graph")


def test_an_npz_keeps_them_by_a_rule(tmp_path):
    csr = sparse.csr_array(table() * (np.random.default_rng(5).random((NODES, COLUMNS)) < 0.3))
    names = {"x_data": csr.data, "x_indices": csr.indices, "x_indptr": csr.indptr, "x_shape": csr.shape}
    edges = {"edge_index": np.array([[0, 1], [1, 0]])}
    np.savez(tmp_path / "few.npz", **edges, **names)
    np.savez(tmp_path / "dense.npz", **edges, x=csr.toarray())
    for name, asked, kept in (
        ("few", None, csr.nnz <= 0.1 * csr.shape[0] * csr.shape[1]),
        ("few", True, True),
        ("few", False, False),
        ("dense", None, False),
        ("dense", True, True),
    ):
        found = data.load_npz(tmp_path / f"{name}.npz", sparse=asked).features
        assert isinstance(found, SparseRows) == kept
        assert (np.asarray(found.toarray() if kept else found) == csr.toarray()).all()


@pytest.mark.parametrize("kind", ["rows", "sums", "tfidf", "none", "auto"])
def test_scaling_keeps_them_sparse_and_is_that_of_the_dense_table(kind):
    dense, nodes = np.abs(table()), np.arange(20)
    wanted, found = (fit_scaling(x, nodes, kind) for x in (dense, sparse_rows(dense)))
    assert wanted.kind == found.kind
    assert isinstance(found(sparse_rows(dense)), SparseRows)
    np.testing.assert_allclose(found(sparse_rows(dense)).toarray(), wanted(dense), rtol=1e-6)
    again = Scaling.from_json(found.to_json())
    np.testing.assert_array_equal(again(dense), found(dense))


def test_tfidf_is_scikit_learns():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    dense = np.abs(table())
    wanted = text.TfidfTransformer().fit_transform(dense).toarray()
    np.testing.assert_allclose(fit_scaling(dense, kind="tfidf")(dense), wanted, rtol=1e-6, atol=1e-7)


def test_columns_are_not_centered():
    with pytest.raises(ValueError, match="cannot be centered and stay sparse"):
        fit_scaling(sparse_rows(table()), kind="columns")


def test_no_table_of_the_size_of_all_columns_is_ever_there():
    """Temporaries of a step do not grow with the number of columns, but for what belongs to the kernel."""
    model, given = GraphSAGE(hidden=4, out=4), blocks("table")

    def temporaries(columns):
        rows = sparse_rows(table())._replace(columns=np.zeros((columns, 0), np.float32))
        params = jax.eval_shape(model.init, jax.random.key(0), rows, given)
        loss = lambda p, x: model.apply(p, x, given).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(params, rows).compile()
        kernels = 2 * 4 * 4 * columns
        return compiled.memory_analysis().temp_size_in_bytes, kernels

    (few, small), (many, large) = temporaries(100), temporaries(100_000)
    assert many - few <= 2 * (large - small)


def test_a_dense_layer_has_flaxs_parameters():
    rows = jax.device_put(sparse_rows(table()))
    params = Dense(3).init(jax.random.key(0), rows)
    np.testing.assert_allclose(Dense(3).apply(params, rows), Dense(3).apply(params, table()), atol=1e-5)
