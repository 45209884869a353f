"""Graph directories: what goes in comes out, damage is named, and a failed write leaves nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage import data
from jsage.data.formats import directory
from jsage.graph import from_edges

GRAPH = from_edges([0, 1, 2, 2], [1, 0, 0, 1], 3, weight=[1.0, 2.0, 3.0, 4.0], time=[4, 3, 2, 1])
DATASET = data.Dataset(
    GRAPH,
    np.arange(6, dtype=np.float32).reshape(3, 2),
    np.array([0, 1, 0], np.int32),
    *(np.array([i], np.int32) for i in range(3)),
)
KINDS = {
    "plain": DATASET,
    "jax arrays": jax.device_put(DATASET),
    "no features": DATASET._replace(features=None),
    "no labels or splits": DATASET._replace(labels=None, train=DATASET.train[:0], val=DATASET.val[:0]),
    "multi-label": DATASET._replace(labels=np.eye(3, 4, dtype=bool)),
    "regression": DATASET._replace(labels=np.ones(3, np.float32)),
    "bfloat16": DATASET._replace(features=jnp.ones((3, 2), jnp.bfloat16) * 1.5),
    "no edges": DATASET._replace(graph=from_edges([], [], 3)),
}


@pytest.fixture
def saved(tmp_path):
    data.save(tmp_path / "graph", DATASET)
    return tmp_path / "graph"


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(tmp_path, kind):
    data.save(tmp_path / "graph", KINDS[kind])
    opened = data.open(tmp_path / "graph")
    assert jax.tree.structure(opened) == jax.tree.structure(KINDS[kind])
    for new, old in zip(jax.tree.leaves(opened), jax.tree.leaves(KINDS[kind]), strict=True):
        assert new.dtype == old.dtype
        np.testing.assert_array_equal(new, old)


def test_opened_arrays_are_read_only_maps_that_place(saved):
    opened = data.open(saved)
    assert all(isinstance(leaf, np.memmap) for leaf in jax.tree.leaves(opened))
    with pytest.raises(ValueError, match="read-only"):
        opened.features[0] = 0
    data.validate_dataset(opened)
    placed = jax.device_put(opened)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))


def test_files_are_as_documented(saved):
    names = {file.name for file in saved.iterdir()}
    fields = {"indptr", "indices", "features", "labels", "train", "val", "test", "edge_weight", "edge_time"}
    assert names == {f"{field}.npy" for field in fields} | {"meta.json"}
    meta = json.loads((saved / "meta.json").read_text())
    assert meta["version"] == 1
    assert meta["files"]["features.npy"]["shape"] == [3, 2]
    assert meta["files"]["features.npy"]["dtype"] == "float32"


@pytest.mark.parametrize("name", ["indptr", "indices", "features", "labels", "train", "edge_weight"])
def test_missing_file_is_named(saved, name):
    (saved / f"{name}.npy").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}\.npy is missing, but meta\.json lists it"):
        data.open(saved)


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_half_written_file_is_named(saved, keep):
    file = saved / "features.npy"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"features\.npy is half-written: expected 152 bytes"):
        data.open(saved)


def test_other_shape_and_type_are_named(saved):
    np.save(saved / "features.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"features\.npy must be float32 \[3, 2\] .* got float32 \[2, 3\]"):
        data.open(saved)
    np.save(saved / "features.npy", np.zeros((3, 2), np.int32))
    with pytest.raises(ValueError, match=r"features\.npy must be float32 \[3, 2\] .* got int32 \[3, 2\]"):
        data.open(saved)


def test_a_file_of_the_right_size_that_is_no_array(saved):
    (saved / "features.npy").write_bytes(bytes((saved / "features.npy").stat().st_size))
    with pytest.raises(ValueError, match=r"features\.npy is not a plain \.npy file"):
        data.open(saved)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"version": 1, "files": {"train.npy": {}}}', '{"version": 9}']
)
def test_half_written_meta(saved, text):
    (saved / "meta.json").write_text(text)
    with pytest.raises(ValueError, match=r"meta\.json is half-written or no graph directory's"):
        data.open(saved)


def test_meta_that_lists_too_little(saved):
    meta = json.loads((saved / "meta.json").read_text())
    del meta["files"]["indices.npy"]
    (saved / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match=r"meta\.json does not list indices\.npy"):
        data.open(saved)


def test_no_graph_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"meta\.json is missing: .* is not a graph directory"):
        data.open(tmp_path)


def test_save_replaces_nothing(saved):
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    with pytest.raises(FileExistsError, match="graph exists already: remove it first"):
        data.save(saved, DATASET._replace(features=None))
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


def test_save_makes_parents_and_fills_an_empty_directory(tmp_path):
    (tmp_path / "empty").mkdir()
    data.save(tmp_path / "empty", DATASET)
    data.save(tmp_path / "a" / "b", DATASET)
    for path in (tmp_path / "empty", tmp_path / "a" / "b"):
        np.testing.assert_array_equal(data.open(path).features, DATASET.features)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch, error):
    def full(file, array, **options):
        file.write(b"half")
        if array.shape == (3, 2):
            raise error

    monkeypatch.setattr(directory.np, "save", full)
    with pytest.raises(type(error)):
        data.save(tmp_path / "graph", DATASET)
    assert list(tmp_path.iterdir()) == []


def test_the_directory_appears_only_when_whole(tmp_path, monkeypatch):
    seen = []
    flush = directory._flush
    monkeypatch.setattr(
        directory, "_flush", lambda file: (flush(file), seen.append((tmp_path / "graph").exists()))
    )
    data.save(tmp_path / "graph", DATASET)
    assert seen == [False] * 10
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_object_arrays_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"labels must be int32 .* got object"):
        data.save(tmp_path / "graph", DATASET._replace(labels=np.array([None, {}, 1], object)))
    assert list(tmp_path.iterdir()) == []
