"""Made graphs have what was asked: size, heavy tail, homophily, features that hint."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from jsage.data import Mixing, power_law_communities, validate_dataset
from jsage.graph import edges, in_degrees, symmetrize

NODES, EDGES = 20_000, 400_000


@pytest.fixture(scope="module")
def dataset():
    return power_law_communities(NODES, EDGES)


def share_of_like_edges(dataset):
    src, dst = edges(dataset.graph)
    return float((dataset.labels[src] == dataset.labels[dst]).mean())


def hill(degrees, top):
    """The exponent of `p(d) ~ d^-exponent` from the `top` largest degrees (Hill, 1975)."""
    largest = np.sort(degrees)[::-1][: top + 1].astype(np.float64)
    return 1 + 1 / np.log(largest[:top] / largest[top]).mean()


def test_size_symmetry_and_splits(dataset):
    validate_dataset(dataset)
    assert 0.93 * EDGES < dataset.graph.num_edges <= EDGES
    assert [len(split) for split in dataset[3:6]] == [NODES // 20, NODES // 20, NODES // 10]
    jax.tree.map(np.testing.assert_array_equal, symmetrize(dataset.graph), dataset.graph)
    src, dst = edges(dataset.graph)
    assert not (src == dst).any()
    np.testing.assert_array_equal(np.bincount(dataset.labels), np.full(10, NODES // 10))


@pytest.mark.parametrize("exponent", [2.3, 2.5, 3.0])
def test_degrees_have_the_tail_asked_for(exponent):
    graph = power_law_communities(NODES, EDGES, mixing=Mixing(exponent=exponent), num_features=1).graph
    degrees = np.asarray(in_degrees(graph))
    assert abs(hill(degrees, 500) - exponent) < 0.25
    assert degrees.max() > 20 * np.median(degrees)
    assert degrees.max() < NODES / 5


@pytest.mark.parametrize("homophily", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_homophily_is_as_asked_for(homophily):
    dataset = power_law_communities(
        NODES, EDGES, mixing=Mixing(homophily=homophily), num_features=1, num_classes=7
    )
    assert share_of_like_edges(dataset) == pytest.approx(homophily, abs=0.03)


def test_features_alone_are_mediocre_and_neighbors_help(dataset):
    features, labels = np.asarray(dataset.features), np.asarray(dataset.labels)
    src = np.asarray(dataset.graph.indices)
    totals = np.concatenate([np.zeros((1, 64)), np.cumsum(features[src], axis=0, dtype=np.float64)])
    ptr = np.asarray(dataset.graph.indptr)
    means = (totals[ptr[1:]] - totals[ptr[:-1]]) / np.maximum(np.diff(ptr), 1)[:, None]
    scores = []
    for rows in (features, np.concatenate([features, means], axis=1)):
        model = LogisticRegression(C=0.1, max_iter=300).fit(rows[dataset.train], labels[dataset.train])
        scores.append(model.score(rows[dataset.test], labels[dataset.test]))
    assert 0.4 < scores[0] < 0.6
    assert scores[1] > scores[0] + 0.1


def test_noise_scales_around_the_class_means():
    quiet = power_law_communities(2000, 8000, mixing=Mixing(noise=0.0))
    assert len(np.unique(np.asarray(quiet.features), axis=0)) == 10
    loud = power_law_communities(2000, 8000, mixing=Mixing(noise=2.0))
    spread = np.asarray(loud.features) - np.asarray(quiet.features)
    assert spread.std() == pytest.approx(2.0, rel=0.02)


def test_the_seed_decides():
    one, again, other = (power_law_communities(500, 4000, seed=seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert not np.array_equal(one.features, other.features)


@pytest.mark.parametrize(("nodes", "num_edges", "classes"), [(10, 0, 10), (20, 2, 20), (30, 30 * 29, 2)])
def test_tiny_sparse_and_full_graphs(nodes, num_edges, classes):
    dataset = power_law_communities(nodes, num_edges, num_classes=classes)
    assert dataset.graph.num_edges <= num_edges
    assert np.isfinite(dataset.features).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_nodes": 5}, r"num_classes must be in 2 \.\. num_nodes \(5\), got 10"),
        ({"num_classes": 1}, r"num_classes must be in 2 \.\. num_nodes \(100\), got 1"),
        ({"num_edges": -1}, r"num_edges must be in 0 \.\. .* got -1"),
        ({"num_edges": 9901}, r"num_edges must be in 0 \.\. .* got 9901"),
        ({"num_features": 0}, "num_features must be at least 1, got 0"),
        ({"mixing": Mixing(homophily=1.5)}, r"homophily is a probability in 0 \.\. 1, got 1.5"),
        ({"mixing": Mixing(exponent=2.0)}, "exponent must be above 2, .* got 2.0"),
        ({"mixing": Mixing(noise=-0.1)}, "noise must be a finite standard deviation .* got -0.1"),
        ({"mixing": Mixing(noise=float("nan"))}, "noise must be a finite standard deviation .* got nan"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        power_law_communities(**{"num_nodes": 100, "num_edges": 1000, **change})
