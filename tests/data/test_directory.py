"""Graph directories: what goes in comes out, damage is named, and a failed write leaves nothing."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage import data
from jsage._internal.files import checksum, locked
from jsage.data.formats.arrays import ArrayWriter
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
    assert meta["version"] == 2
    assert len(meta["sha256"]) == len(meta["files"]["features.npy"]["sha256"]) == 64
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
    with pytest.raises(ValueError, match=r"meta\.json is half-written, damaged or no graph directory's"):
        data.open(saved)


def test_meta_that_lists_too_little(saved):
    meta = json.loads((saved / "meta.json").read_text())
    del meta["files"]["indices.npy"]
    write_meta(saved, meta)
    with pytest.raises(ValueError, match=r"meta\.json does not list indices\.npy"):
        data.open(saved)


def write_meta(folder, meta):
    """With the checksum that belongs to it."""
    del meta["sha256"]
    (folder / "meta.json").write_text(json.dumps({"sha256": checksum(meta), **meta}))


@pytest.mark.parametrize("name", ["indptr", "indices", "features", "labels", "test", "edge_weight"])
def test_a_flipped_bit_anywhere_is_named(saved, name):
    file = saved / f"{name}.npy"
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=rf"{name}\.npy (is damaged|is not a plain|must be)"):
            data.open(saved)
    data.open(saved, verify=False)  # as for the last of these, sizes alone do not tell


def test_a_flipped_bit_of_meta_never_opens_other_data(saved):
    file, trees = saved / "meta.json", []
    whole, expected = file.read_bytes(), jax.tree.leaves(DATASET)
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 7]) + whole[at + 1 :])
        with contextlib.suppress(ValueError, FileNotFoundError):
            trees.append(data.open(saved))  # white space may change
    assert len(trees) < len(whole) / 4
    for tree in trees:
        for new, old in zip(jax.tree.leaves(tree), expected, strict=True):
            np.testing.assert_array_equal(new, old)


def test_a_directory_of_the_first_version_is_opened_without_checksums(saved):
    meta = json.loads((saved / "meta.json").read_text())
    del meta["sha256"]
    for entry in meta["files"].values():
        del entry["sha256"]
    for version, opened in ((1, True), (2, False), (3, False)):
        (saved / "meta.json").write_text(json.dumps({**meta, "version": version}))
        with contextlib.nullcontext() if opened else pytest.raises(ValueError, match="half-written, damaged"):
            np.testing.assert_array_equal(data.open(saved).features, DATASET.features)


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


def test_what_a_killed_save_left_is_removed_and_a_running_one_is_not_disturbed(tmp_path):
    (tmp_path / ".graph.new").mkdir()
    (tmp_path / ".graph.new" / "half.npy").write_bytes(b"")
    with locked(tmp_path / "graph"), pytest.raises(BlockingIOError, match="graph is being written already"):
        data.save(tmp_path / "graph", DATASET)
    assert (tmp_path / ".graph.new" / "half.npy").exists()
    data.save(tmp_path / "graph", DATASET)
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]
    assert not (tmp_path / "graph" / "half.npy").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch, error):
    def full(writer, rows):
        writer._file.write(b"half")
        if rows.shape == (3, 2):
            raise error

    monkeypatch.setattr(ArrayWriter, "append", full)
    monkeypatch.setattr(ArrayWriter, "finish", lambda writer: {})
    with pytest.raises(type(error)):
        data.save(tmp_path / "graph", DATASET)
    assert list(tmp_path.iterdir()) == []


def test_the_directory_appears_only_when_whole(tmp_path, monkeypatch):
    seen, finish = [], ArrayWriter.finish
    monkeypatch.setattr(
        ArrayWriter, "finish", lambda writer: (seen.append((tmp_path / "graph").exists()), finish(writer))[1]
    )
    data.save(tmp_path / "graph", DATASET)
    assert seen == [False] * 9
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


def test_object_arrays_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"labels must be int32 .* got object"):
        data.save(tmp_path / "graph", DATASET._replace(labels=np.array([None, {}, 1], object)))
    assert list(tmp_path.iterdir()) == []
