"""Sharded directories on a mesh, and what a sharded graph's edges tell: against the whole graph in NumPy."""

import jax
import numpy as np
import pytest

from jsage.data import Dataset, shard_dataset
from jsage.graph import Ranges, balanced, contiguous, from_edges, hashed, out_degrees
from jsage.graph import symmetric_weights as whole_weights
from jsage.parallel import (
    cache_rows,
    make_mesh,
    most_sampled,
    open_features,
    open_graph,
    open_nodes,
    shard_features,
    shard_graph,
    symmetric_weights,
    transforms,
)
from jsage.parallel.graph import to_global_ids

NODES, DEVICES = 45, 8


@pytest.fixture(scope="module")
def mesh():
    return make_mesh()


@pytest.fixture(scope="module")
def dataset():
    """A hub, parallel edges, nodes without edges; splits out of order, of which some shards have none."""
    rng = np.random.default_rng(0)
    src, dst = rng.integers(0, 30, 300), np.where(rng.random(300) < 0.3, 7, rng.integers(0, 40, 300))
    features = rng.normal(size=(NODES, 3)).astype(np.float32)
    weight = rng.uniform(0.5, 2, 300).astype(np.float32)
    graph = from_edges(src, dst, NODES, weight=weight)
    labels, ids = rng.integers(0, 4, NODES).astype(np.int32), rng.permutation(NODES).astype(np.int32)
    return Dataset(graph, features, labels, ids[:20], ids[20:23], np.zeros(0, np.int32))


PLACEMENTS = {
    "contiguous": lambda degrees: contiguous(NODES, DEVICES),
    "hashed": lambda degrees: hashed(NODES, DEVICES),
    "balanced": lambda degrees: balanced(degrees, DEVICES),
    "six shards empty": lambda degrees: Ranges(NODES, DEVICES, (0, 0, 0, 9, 45, 45, 45, 45, 45)),
}


@pytest.fixture(params=PLACEMENTS)
def placement(request, dataset):
    return PLACEMENTS[request.param](np.diff(np.asarray(dataset.graph.indptr)))


def test_what_is_opened_is_what_the_whole_data_set_gives(tmp_path, mesh, dataset, placement):
    shard_dataset(tmp_path / "d", dataset, placement)
    for found, expected in (
        (open_graph(tmp_path / "d", mesh), shard_graph(dataset.graph, placement, mesh)),
        (
            open_features(tmp_path / "d", mesh, lanes=4),
            shard_features(dataset.features, placement, mesh, lanes=4),
        ),
    ):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert (a.dtype, a.sharding) == (b.dtype, b.sharding)
            np.testing.assert_array_equal(a, b)
    for split in ("train", "val", "test"):
        nodes, ids = open_nodes(tmp_path / "d", split, mesh), np.sort(getattr(dataset, split))
        np.testing.assert_array_equal(nodes.ids, ids)
        np.testing.assert_array_equal(nodes.labels, dataset.labels[ids])
        np.testing.assert_array_equal(np.stack(nodes.place), np.stack(placement.locate(ids)))


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [True, False])
def test_weights_and_copies_are_those_of_the_whole_graph(mesh, dataset, monkeypatch, weighted):
    monkeypatch.setattr(transforms, "BATCH", 11)
    placement = hashed(NODES, DEVICES)
    graph = dataset.graph if weighted else dataset.graph._replace(edge_data={})
    found = symmetric_weights(shard_graph(graph, placement, mesh), mesh)
    expected = shard_graph(whole_weights(graph), placement, mesh)
    np.testing.assert_allclose(found.edge_data["weight"], expected.edge_data["weight"], rtol=1e-6)
    degrees = np.sort(np.asarray(out_degrees(graph)))[::-1]
    count = next(n for n in range(5, 30) if degrees[n - 1] > degrees[n])  # no tie at the end
    features = shard_features(dataset.features, placement, mesh)
    hot = cache_rows(found, features, count, mesh).hot
    expected = shard_features(dataset.features, placement, mesh, hot=most_sampled(graph, count)).hot
    for a, b in zip(hot, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_refusals(tmp_path, mesh, dataset):
    shard_dataset(tmp_path / "four", dataset, hashed(NODES, 4))
    shard_dataset(tmp_path / "bare", dataset._replace(features=None, labels=None), hashed(NODES, DEVICES))
    for opened in (open_graph, open_features, lambda path, mesh: open_nodes(path, "train", mesh)):
        with pytest.raises(
            ValueError, match="a mesh of 8 devices takes as many shards, got a placement over 4"
        ):
            opened(tmp_path / "four", mesh)
    with pytest.raises(ValueError, match="bare has no features: shard a data set that has"):
        open_features(tmp_path / "bare", mesh)
    with pytest.raises(ValueError, match="a split is train, val or test, got 'dev'"):
        open_nodes(tmp_path / "bare", "dev", mesh)
    assert open_nodes(tmp_path / "bare", "train", mesh).labels is None
    placement = hashed(NODES, DEVICES)
    graph, features = (
        shard_graph(dataset.graph, placement, mesh),
        shard_features(dataset.features, placement, mesh),
    )
    with pytest.raises(ValueError, match="count is a positive number of rows to copy, got 0"):
        cache_rows(graph, features, 0, mesh)


def test_shards_of_a_graph_of_many_nodes_name_them_in_as_many_words():
    few, many = to_global_ids(np.array([3])), to_global_ids(np.array([3]), num_nodes=2**32 + 1)
    assert [word.tolist() for word in many] == [[3], [0]]
    assert len(few) == len(to_global_ids(np.array([3]), num_nodes=2**32)) == 1
