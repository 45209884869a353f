"""Sharded graph directories: put together again they are the graph; damage is refused by name."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD

from jsage import data
from jsage._internal.files import locked
from jsage.data import Dataset, open_shard, open_shards, shard_dataset, verify_shards
from jsage.data.shards import writer
from jsage.data.shards.layout import describe_placement, read_placement
from jsage.graph import Placement, Ranges, balanced, contiguous, from_edges, hashed, in_degrees
from jsage.parallel.place import pack

PLACEMENTS = {
    "contiguous": lambda graph, shards: contiguous(graph.num_nodes, shards),
    "hashed": lambda graph, shards: hashed(graph.num_nodes, shards, seed=1),
    "balanced": lambda graph, shards: balanced(np.asarray(in_degrees(graph)), shards),
}


def make_dataset(src, dst, num_nodes):
    random = np.random.default_rng(0)
    nodes = random.permutation(num_nodes).astype(np.int32)
    graph = from_edges(src, dst, num_nodes, weight=np.arange(len(src), dtype=np.float32))
    features = random.normal(size=(num_nodes, 3)).astype(np.float32)
    return Dataset(
        graph, features, random.integers(0, 4, num_nodes).astype(np.int32), *np.split(nodes, [2, 3])
    )


def sources(placement, shard):
    """The ids of a shard's sources."""
    if shard.owners is None:
        return placement.nodes(*np.divmod(np.asarray(shard.indices, np.int64), placement.rows))
    return placement.nodes(np.asarray(shard.owners), np.asarray(shard.indices))


def put_together(path):
    """The data set of a sharded directory, row by row."""
    placement = open_shards(path).placement
    shards = [open_shard(path, number, verify=True) for number in range(placement.shards)]
    rows, tables = {}, {}
    for number, shard in enumerate(shards):
        ids = sources(placement, shard)
        for row, node in enumerate(placement.globals(number).tolist()):
            span = slice(shard.indptr[row], shard.indptr[row + 1])
            rows[node] = ids[span].tolist(), shard.edge_data["weight"][span].tolist()
            tables[node] = shard.features[row].tolist(), shard.labels[row].item()
    splits = {
        name: [set(placement.globals(n)[getattr(shard, name)].tolist()) for n, shard in enumerate(shards)]
        for name in ("train", "val", "test")
    }
    return rows, tables, splits


@pytest.mark.parametrize("kind", PLACEMENTS)
@pytest.mark.parametrize(
    ("name", "shards"), [*((name, 3) for name in AWKWARD), ("random", 1), ("random", 11)]
)
def test_put_together_the_shards_are_the_graph(tmp_path, name, kind, shards):
    src, dst, num_nodes = AWKWARD[name]
    dataset = make_dataset(src, dst, num_nodes)
    placement = PLACEMENTS[kind](dataset.graph, shards)
    shard_dataset(tmp_path / "graph", dataset, placement)
    rows, tables, splits = put_together(tmp_path / "graph")
    for node in range(num_nodes):
        edges = np.flatnonzero(dst == node)
        assert rows[node] == (src[edges].tolist(), edges.tolist())
        assert tables[node] == (dataset.features[node].tolist(), dataset.labels[node])
    for name, parts in splits.items():
        assert set().union(*parts) == set(getattr(dataset, name).tolist())
        assert sum(map(len, parts)) == len(getattr(dataset, name))
    meta = open_shards(tmp_path / "graph")
    assert meta.placement == placement
    assert (meta.num_edges, sum(meta.edges), sum(meta.nodes)) == (len(src), len(src), num_nodes)


RANDOM = make_dataset(*AWKWARD["random"])
PLACED = contiguous(8, 3)


@pytest.fixture
def written(tmp_path):
    shard_dataset(tmp_path / "graph", RANDOM, PLACED)
    return tmp_path / "graph"


def test_contents(written):
    shard = open_shard(written, 1)
    assert {array.dtype for array in (shard.indptr, shard.indices, shard.train)} == {np.dtype(np.int32)}
    assert all(isinstance(array, np.memmap) for array in (shard.indptr, shard.features, shard.train))
    with pytest.raises(ValueError, match="read-only"):
        shard.features[0] = 0
    graph = RANDOM.graph  # contiguous placed ids are ids
    np.testing.assert_array_equal(shard.indices, graph.indices[graph.indptr[3] : graph.indptr[6]])
    meta = json.loads((written / "meta.json").read_text())
    assert (meta["version"], meta["num_nodes"], meta["num_edges"], meta["shards"]) == (1, 8, 40, 3)
    assert meta["features"] == {"dtype": "float32", "shape": [3]}
    assert meta["labels"] == {"dtype": "int32", "shape": []}
    files = {str(file.relative_to(written)) for file in written.rglob("*") if file.is_file()}
    assert files == {*meta["files"], "meta.json"}
    assert all({"bytes", "sha256"} <= entry.keys() for entry in meta["files"].values())
    assert [path.name for path in written.parent.iterdir()] == ["graph"]


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_sharded_training_reads_shards_as_they_are(tmp_path, kind):
    placement = PLACEMENTS[kind](RANDOM.graph, 3)
    assert isinstance(placement, Placement)
    shard_dataset(tmp_path / "graph", RANDOM, placement)
    src = np.asarray(RANDOM.graph.indices)
    dst = np.repeat(np.arange(8), np.diff(RANDOM.graph.indptr))
    for number in range(3):
        edges = np.concatenate([np.flatnonzero(dst == node) for node in placement.globals(number)])
        (words,) = pack(*placement.locate(src[edges]), placement.rows, placement.shards)
        np.testing.assert_array_equal(open_shard(tmp_path / "graph", number).indices, words)


def test_what_a_killed_call_left_is_removed_and_a_running_one_is_not_disturbed(tmp_path):
    (tmp_path / ".graph.new" / "shard-00009").mkdir(parents=True)
    with locked(tmp_path / "graph"), pytest.raises(BlockingIOError, match="graph is being written already"):
        shard_dataset(tmp_path / "graph", RANDOM, PLACED)
    shard_dataset(tmp_path / "graph", RANDOM, PLACED)
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]
    assert not (tmp_path / "graph" / "shard-00009").exists()


def test_a_graph_directory_gives_the_same_bytes(written, tmp_path):
    data.save(tmp_path / "whole", RANDOM)
    shard_dataset(tmp_path / "mapped", tmp_path / "whole", PLACED)
    assert (tmp_path / "mapped" / "meta.json").read_bytes() == (written / "meta.json").read_bytes()


def test_bfloat16_and_no_tables(tmp_path):
    dataset = RANDOM._replace(features=jnp.arange(16, dtype=jnp.bfloat16).reshape(8, 2), labels=None)
    data.save(tmp_path / "whole", dataset)
    for name, source in (("memory", dataset), ("mapped", tmp_path / "whole")):
        shard_dataset(tmp_path / name, source, hashed(8, 3))
        for number in range(3):
            shard = open_shard(tmp_path / name, number, verify=True)
            assert shard.features.dtype == jnp.bfloat16
            np.testing.assert_array_equal(shard.features[:, 0], 2 * hashed(8, 3).globals(number))
            assert shard.labels is None
    assert open_shards(tmp_path / "memory").labels is None


def test_without_room_for_placed_ids_sources_are_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_LIMIT", 8)
    graph = from_edges([1, 7, 5], [0, 0, 4], 8, weight=[0.0, 1.0, 2.0])
    shard_dataset(tmp_path / "graph", RANDOM._replace(graph=graph), PLACED)
    shard = open_shard(tmp_path / "graph", 0)
    assert (shard.owners.tolist(), shard.indices.tolist()) == ([0, 2], [1, 1])
    assert put_together(tmp_path / "graph")[0][0] == ([1, 7], [0.0, 1.0])


def test_too_many_edges_in_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_LIMIT", 24)
    with pytest.raises(
        ValueError, match=r"shard 0 would have 40 edges, .* fewer than 2\^31: take more shards"
    ):
        shard_dataset(tmp_path / "graph", RANDOM, contiguous(8, 1))
    assert list(tmp_path.iterdir()) == []


def test_a_host_needs_no_other_shards(written):
    shutil.rmtree(written / "shard-00000")
    shutil.rmtree(written / "shard-00002")
    assert open_shards(written).nodes == (3, 3, 2)
    open_shard(written, 1, verify=True)
    with pytest.raises(
        FileNotFoundError, match=r"shard-00000/shard\.json is missing, but meta\.json lists it"
    ):
        open_shard(written, 0)


def flip(file, at=-1):
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


FILES = ("indptr", "indices", "features", "labels", "train", "val", "test", "edge_weight")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(written, name):
    (written / "shard-00001" / f"{name}.npy").unlink()
    with pytest.raises(FileNotFoundError, match=rf"shard-00001/{name}\.npy is missing"):
        open_shard(written, 1)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(written, name):
    file = written / "shard-00001" / f"{name}.npy"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=rf"{name}\.npy is half-written: expected {size} bytes .*, got {size - 1}"
    ):
        open_shard(written, 1)


@pytest.mark.parametrize("name", ["indptr", "indices", "features", "labels", "test", "edge_weight"])
def test_a_flipped_bit(written, name):
    flip(written / "shard-00001" / f"{name}.npy")
    open_shard(written, 1)  # sizes alone do not tell
    with pytest.raises(
        ValueError, match=rf"shard-00001/{name}\.npy is damaged .* expected SHA-256 \w+ .*, got \w+"
    ):
        open_shard(written, 1, verify=True)
    with pytest.raises(ValueError, match=rf"shard-00001/{name}\.npy is damaged"):
        verify_shards(written)


def test_swapped_shards(written):
    (written / "shard-00000").rename(written / "other")
    (written / "shard-00001").rename(written / "shard-00000")
    (written / "other").rename(written / "shard-00001")
    for number in (0, 1):
        with pytest.raises(
            ValueError, match=rf"shard-0000{number} is shard {1 - number}: expected SHA-256 \w+"
        ):
            open_shard(written, number)


def test_the_shard_of_another_run(written, tmp_path):
    other = RANDOM._replace(features=RANDOM.features + 1)
    shard_dataset(tmp_path / "other", other, PLACED)
    shutil.rmtree(written / "shard-00001")
    shutil.copytree(tmp_path / "other" / "shard-00001", written / "shard-00001")
    with pytest.raises(
        ValueError, match=r"shard-00001 is another run's: expected SHA-256 \w+ .*, got \w+: put"
    ):
        open_shard(written, 1)
    shutil.copy(written.parent / "other" / "meta.json", written / "meta.json")
    open_shard(written, 1)
    with pytest.raises(ValueError, match="shard-00000 is another run's"):
        open_shard(written, 0)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sha256": 1, "format": "x"}'])
def test_meta_that_is_none(written, text):
    (written / "meta.json").write_text(text)
    with pytest.raises(ValueError, match=r"meta\.json is damaged or no sharded graph directory's"):
        open_shard(written, 0)


def test_meta_of_another_version_or_changed(written):
    meta = json.loads((written / "meta.json").read_text())
    (written / "meta.json").write_text(json.dumps({**meta, "version": 9}))
    with pytest.raises(ValueError, match="version 9, but this reads 'jsage sharded graph', 1"):
        open_shards(written)
    (written / "meta.json").write_text(json.dumps({**meta, "num_edges": 41}))
    with pytest.raises(ValueError, match=r"meta\.json is damaged: its SHA-256 is not the one"):
        open_shards(written)
    (written / "meta.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"meta\.json is missing: .* is no sharded graph directory"):
        open_shards(written)


def test_a_shard_that_there_is_not(written):
    for number in (-1, 3):
        with pytest.raises(ValueError, match=rf"has the shards 0 \.\. 2, got {number}"):
            open_shard(written, number)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((7, 2))}, r"features must have one row a node, 8, got shape \(7, 2\)"),
        ({"features": np.zeros(8)}, r"features must be \[num_nodes, width\], got shape \(8,\)"),
        ({"labels": np.zeros(9)}, r"labels must have one row a node, 8, got shape \(9,\)"),
        ({"train": np.array([8])}, r"train: ids must be node ids in 0 \.\. 7, got 8"),
        ({"test": np.array([-1])}, r"test: ids must be node ids in 0 \.\. 7, got -1"),
        ({"val": np.array([0.5])}, "val must hold integers, got float64"),
        ({"val": np.zeros((1, 1), int)}, r"val must be one axis of node ids, got shape \(1, 1\)"),
    ],
)
def test_bad_tables(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        shard_dataset(tmp_path / "graph", Dataset(**{**RANDOM._asdict(), **change}), PLACED)
    assert list(tmp_path.iterdir()) == []


def test_bad_targets(written):
    before = (written / "meta.json").read_bytes()
    with pytest.raises(FileExistsError, match="graph exists already: remove it first"):
        shard_dataset(written, RANDOM, hashed(8, 3))
    assert (written / "meta.json").read_bytes() == before
    with pytest.raises(ValueError, match="the placement is of 9 nodes, but the graph has 8"):
        shard_dataset(written.parent / "new", RANDOM, contiguous(9, 3))
    with pytest.raises(ValueError, match="must be of kind 'ranges' or 'hashed', got 'random'"):
        read_placement({"num_nodes": 3, "shards": 1, "placement": {"kind": "random"}})


@pytest.mark.parametrize("placement", [contiguous(9, 4), hashed(9, 4, seed=5), Ranges(9, 2, (0, 9, 9))])
def test_placements_are_kept(placement):
    assert read_placement(json.loads(json.dumps(describe_placement(placement)))) == placement
