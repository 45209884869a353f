"""Nearest rows against NumPy's stable argsort, in chunks and from files; what the writers leave behind."""

import os
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage.infer import Neighbors, nearest, nearest_streamed, not_these, save_embeddings, save_neighbors
from jsage.nn import l2_normalize

ROWS, QUERIES, WIDTH, K = 50, 7, 4, 6


def whole(rows: int, seed: int, low: int = -2, high: int = 3) -> np.ndarray:
    """Small whole numbers: their products are exact in float32, and many are equal."""
    return np.random.default_rng(seed).integers(low, high, (rows, WIDTH)).astype(np.float32)


QUERY, TABLE = whole(QUERIES, 0), whole(ROWS, 1)


def reference(query, table, k: int, allowed=None) -> Neighbors:
    """The first `k` of a stable argsort, so that ties go to the lower id."""
    score = np.asarray(query, np.float64) @ np.asarray(table, np.float64).T
    score = np.where(True if allowed is None else allowed, score, -np.inf)
    ids = np.argsort(-score, axis=1, kind="stable")[:, :k]
    score = np.take_along_axis(score, ids, 1)
    return Neighbors(np.where(score == -np.inf, -1, ids), score)


def prepared(find, **options):
    """A search with its options bound; one on the device as one program."""
    return jax.jit(partial(find, **options)) if find is nearest else partial(find, **options)


def on_device(*arrays: np.ndarray) -> list[jax.Array]:
    return [jax.device_put(array) for array in arrays]


def check(found: Neighbors, expected: Neighbors) -> None:
    np.testing.assert_array_equal(found.id, expected.id)
    np.testing.assert_array_equal(found.score, expected.score)


@pytest.mark.parametrize("find", [nearest, nearest_streamed])
@pytest.mark.parametrize("chunk", [1, 3, 25, 49, 1000])
def test_exact_with_ties_to_the_lower_id_whatever_the_chunk(find, chunk: int):
    find = prepared(find, k=K, chunk=chunk)
    expected = reference(QUERY, TABLE, K)
    assert (np.diff(expected.score) == 0).any()
    check(find(*on_device(QUERY, TABLE)), expected)


@pytest.mark.parametrize("find", [nearest, nearest_streamed])
def test_all_rows_in_order(find):
    check(prepared(find, k=ROWS, chunk=8)(*on_device(QUERY, TABLE)), reference(QUERY, TABLE, ROWS))


def test_zeros_of_either_sign_are_equal():
    table = np.array([[-1.0], [1.0], [-1.0]], np.float32)
    found = prepared(nearest, k=3)(np.array([[0.0], [-0.0]], np.float32), table)
    assert found.id.tolist() == [[0, 1, 2]] * 2


def test_cosine_by_rows_of_length_1():
    rng = np.random.default_rng(2)
    query, table = (rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (QUERIES, ROWS))
    unit = [x.astype(np.float64) / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, table)]
    found = prepared(nearest, k=K, chunk=16)(*map(jax.jit(l2_normalize), (query, table)))
    np.testing.assert_array_equal(found.id, reference(*unit, K).id)
    np.testing.assert_allclose(found.score, reference(*unit, K).score, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("find", [nearest, nearest_streamed])
def test_rows_left_out_never_come_and_are_never_read(find):
    own = np.arange(QUERIES)
    out = np.stack([own, own + 20, np.full(QUERIES, -1)], 1)
    allowed = ~(out[..., None] == np.arange(ROWS)).any(1)
    table = TABLE.copy()
    left_out = not_these(jax.device_put(out.astype(np.int32)))
    found = prepared(find, k=K, chunk=16, allow=left_out)(*on_device(QUERY, table))
    check(found, reference(QUERY, TABLE, K, allowed))
    items = np.arange(ROWS) >= 44  # fewer than k
    table = np.where(items[:, None], table, np.float32(np.nan))
    found = prepared(find, k=8, chunk=16, allow=lambda ids: (ids >= 44)[None])(*on_device(QUERY, table))
    check(found, reference(QUERY, TABLE, 8, items[None]))
    assert (np.asarray(found.id)[:, 6:] == -1).all()


def test_a_row_of_nan_is_near_to_nothing():
    table = TABLE.copy()
    table[5] = np.nan
    found = prepared(nearest, k=ROWS, chunk=16)(QUERY, table)
    check(found, reference(QUERY, TABLE, ROWS, np.arange(ROWS)[None] != 5))


def test_one_trace_and_no_matrix_of_all_scores():
    traces = []

    @jax.jit
    def find(queries, table):
        traces.append(1)
        return nearest(queries, table, K, chunk=16)

    for seed in range(3):
        check(find(whole(QUERIES, seed), TABLE), reference(whole(QUERIES, seed), TABLE, K))
    assert len(traces) == 1
    shapes = [jax.ShapeDtypeStruct((n, 8), np.float32) for n in (1024, 2**20)]
    memory = jax.jit(partial(nearest, k=K, chunk=256)).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 16 * 4 * 1024 * 256  # of 4 * 1024 * 2**20


def test_vmap_equals_a_loop():
    queries = np.stack([whole(QUERIES, seed) for seed in range(3)])
    mapped = jax.jit(jax.vmap(partial(nearest, k=K, chunk=16), in_axes=(0, None)))
    found = jax.tree.map(np.asarray, mapped(queries, TABLE))
    for i, query in enumerate(queries):
        check(jax.tree.map(lambda x, i=i: x[i], found), reference(query, TABLE, K))


def test_bfloat16_is_summed_in_float32():
    query, table = (x.astype(jnp.bfloat16) for x in (QUERY, TABLE))
    found = prepared(nearest, k=K, chunk=16)(query, table)
    assert found.score.dtype == jnp.float32
    check(found, reference(QUERY, TABLE, K))


def test_the_approximate_search_recalls_what_it_was_asked_to():
    rng = np.random.default_rng(3)
    query, table = (rng.normal(size=(n, 8)).astype(np.float32) for n in (64, 4096))
    exact, close = (
        np.asarray(prepared(nearest, k=10, chunk=1024, recall_target=r)(query, table).id) for r in (None, 0.9)
    )
    hits = [len(np.intersect1d(a, b)) for a, b in zip(exact, close, strict=True)]
    assert np.mean(hits) / 10 > 0.85
    assert all(len(np.unique(row)) == 10 for row in close)


def test_a_memory_mapped_table(tmp_path):
    np.save(tmp_path / "table.npy", TABLE)
    table = np.load(tmp_path / "table.npy", mmap_mode="r")
    found = nearest_streamed(
        jax.device_put(QUERY), table, K, chunk=16, allow=not_these(jnp.full((QUERIES, 1), 3))
    )
    check(found, reference(QUERY, TABLE, K, np.arange(ROWS)[None] != 3))


@pytest.mark.parametrize("find", [nearest, nearest_streamed])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 0}, r"k must be in 1 \.\. 50, the rows of the table, got 0"),
        ({"k": 51}, r"k must be in 1 \.\. 50, the rows of the table, got 51"),
        ({"k": 1, "chunk": 0}, "chunk is a number of rows, at least 1, got 0"),
        ({"k": 1, "recall_target": 0.0}, r"recall_target must be in \(0, 1\], or None .* got 0.0"),
    ],
)
def test_bad_options_are_refused(find, changed, message):
    with pytest.raises(ValueError, match=message):
        find(*on_device(QUERY, TABLE), **changed)


@pytest.mark.parametrize("find", [nearest, nearest_streamed])
def test_queries_of_another_width_are_refused(find):
    with pytest.raises(ValueError, match="rows of one width, got 4 and 3"):
        find(*on_device(QUERY, TABLE[:, :3]), 1)


FOUND = Neighbors(np.array([[3, 1], [0, -1]], np.int32), np.array([[2.0, 1.0], [0.5, -np.inf]], np.float32))


def test_neighbors_to_npy_and_back(tmp_path):
    save_neighbors(tmp_path / "found.npy", Neighbors(*on_device(*FOUND)))
    array = np.load(tmp_path / "found.npy", mmap_mode="r")
    check(Neighbors(array["id"], array["score"]), FOUND)
    assert os.listdir(tmp_path) == ["found.npy"]


@pytest.mark.parametrize("nodes", [None, np.array([7, 9])])
def test_neighbors_to_parquet_and_back(tmp_path, nodes):
    parquet = pytest.importorskip("pyarrow.parquet")
    save_neighbors(tmp_path / "found.parquet", FOUND, nodes=nodes)
    table = parquet.read_table(tmp_path / "found.parquet").to_pydict()
    check(Neighbors(np.array(table["id"]), np.array(table["score"])), FOUND)
    assert table["node"] == ([0, 1] if nodes is None else [7, 9])
    assert os.listdir(tmp_path) == ["found.parquet"]


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
@pytest.mark.parametrize("rows", [0, 5])
def test_embeddings_there_and_back(tmp_path, dtype, rows: int, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(sys.modules["jsage.infer.nearest"], "_ROWS", 2)  # three row groups
    table = jax.device_put(whole(rows, 4).astype(dtype))
    save_embeddings(tmp_path / "rows.npy", table)
    save_embeddings(str(tmp_path / "rows.parquet"), np.asarray(table))
    stored = np.load(tmp_path / "rows.npy")
    assert stored.dtype == (np.float16 if dtype == np.float16 else np.float32)
    np.testing.assert_array_equal(stored, np.asarray(table).astype(np.float32))
    read = parquet.read_table(tmp_path / "rows.parquet")
    assert read.column("node").to_pylist() == list(range(rows))
    back = np.array(read.column("embedding").to_pylist(), np.float32).reshape(rows, WIDTH)
    np.testing.assert_array_equal(back, stored)


def fail(*args, **kwargs):
    raise OSError("no space left")


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("rows.npy", "numpy.lib.format.write_array"),
        ("rows.npy", "os.fsync"),
        ("rows.parquet", "pyarrow.parquet.ParquetWriter.write_table"),
        ("rows.parquet", "os.fsync"),
        ("rows.npy", "pathlib.Path.replace"),
    ],
)
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, name: str, broken: str):
    pytest.importorskip("pyarrow.parquet")
    save_embeddings(tmp_path / name, whole(3, 5))
    before = (tmp_path / name).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        with pytest.raises(OSError, match="no space left"):
            save_embeddings(tmp_path / name, whole(4, 6))
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == before
    save_embeddings(tmp_path / name, whole(4, 6))
    assert (tmp_path / name).read_bytes() != before


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ImportError, match=re.escape("pip install 'jsage[parquet]', or give a path that ends")
    ):
        save_neighbors(tmp_path / "found.parquet", FOUND)
    assert os.listdir(tmp_path) == []
    save_neighbors(tmp_path / "found.npy", FOUND)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.npy or \.parquet, got .*rows.csv"):
        save_embeddings(tmp_path / "rows.csv", TABLE)
    with pytest.raises(ValueError, match=r"embeddings are rows \[num_rows, d\], got shape \(4,\)"):
        save_embeddings(tmp_path / "rows.npy", TABLE[0])
    with pytest.raises(ValueError, match=r"a \.npy has no column for nodes"):
        save_embeddings(tmp_path / "rows.npy", TABLE, nodes=np.arange(ROWS))
    with pytest.raises(ValueError, match=r"nodes must hold one id a row, 50, got shape \(49,\)"):
        save_embeddings(tmp_path / "rows.parquet", TABLE, nodes=np.arange(ROWS - 1))
    with pytest.raises(ValueError, match=r"must be \[num_queries, k\], got \(2, 2\) and \(1, 2\)"):
        save_neighbors(tmp_path / "rows.npy", FOUND._replace(score=FOUND.score[:1]))
    assert os.listdir(tmp_path) == []
