"""The digits against scikit-learn's copy and its nearest neighbors."""

from importlib import resources

import jax
import numpy as np
import pytest
import sklearn.datasets
import sklearn.linear_model
import sklearn.neighbors

from jsage.data import digits, inductive, validate_dataset
from jsage.graph import edges, in_degrees, out_degrees, symmetrize


@pytest.fixture(scope="module")
def dataset():
    return digits()


@pytest.fixture(scope="module")
def reference():
    return sklearn.datasets.load_digits()


def test_pixels_and_labels_are_scikit_learns(dataset, reference):
    validate_dataset(dataset)
    np.testing.assert_array_equal(dataset.features, reference.data.astype(np.float32) / 16)
    np.testing.assert_array_equal(dataset.labels, reference.target)


def test_the_file_is_small_and_says_whose_it_is():
    folder = resources.files("jsage.data")
    assert len(folder.joinpath("digits.xz").read_bytes()) <= 50_000
    assert "CC BY 4.0" in folder.joinpath("digits.txt").read_text()


@pytest.mark.parametrize("neighbors", [1, 8])
def test_each_digit_is_joined_to_its_nearest(reference, neighbors):
    graph = digits(neighbors).graph
    search = sklearn.neighbors.NearestNeighbors(n_neighbors=neighbors, algorithm="brute").fit(reference.data)
    farthest = search.kneighbors()[0][:, -1]
    src, dst = (np.asarray(ends) for ends in edges(graph))
    distance = np.linalg.norm(reference.data[src] - reference.data[dst], axis=1)
    assert (distance <= np.maximum(farthest[src], farthest[dst]) + 1e-9).all()
    closer = distance <= farthest[dst] + 1e-9
    assert (np.bincount(dst[closer], minlength=1797) >= neighbors).all()
    assert (src != dst).all()
    jax.tree.map(np.testing.assert_array_equal, symmetrize(graph), graph)


def test_splits_have_every_digit(dataset):
    labels = np.asarray(dataset.labels)
    np.testing.assert_array_equal(np.bincount(labels[dataset.train]), np.full(10, 10))
    np.testing.assert_array_equal(np.bincount(labels[dataset.val]), np.full(10, 20))
    np.testing.assert_array_equal(np.bincount(labels[dataset.test]), np.bincount(labels) - 80)


def test_test_digits_are_absent_from_the_training_graph(dataset):
    graph = inductive(dataset)
    assert not in_degrees(graph)[dataset.test].any()
    assert not out_degrees(graph)[dataset.test].any()
    assert (in_degrees(graph)[dataset.train] > 0).mean() > 0.95


def test_neighbors_mostly_share_a_label_and_pixels_alone_do_not_suffice(dataset):
    src, dst = edges(dataset.graph)
    assert 0.94 < (dataset.labels[src] == dataset.labels[dst]).mean() < 0.99
    pixels, labels = np.asarray(dataset.features), np.asarray(dataset.labels)
    model = sklearn.linear_model.LogisticRegression(max_iter=1000)
    model.fit(pixels[dataset.train], labels[dataset.train])
    assert 0.85 < model.score(pixels[dataset.test], labels[dataset.test]) < 0.93


def test_it_is_the_same_every_time(dataset):
    jax.tree.map(np.testing.assert_array_equal, digits(), dataset)


@pytest.mark.parametrize("neighbors", [0, 1797])
def test_refuses_impossible_neighbors(neighbors):
    with pytest.raises(ValueError, match=rf"neighbors must be in 1 \.\. 1796, got {neighbors}"):
        digits(neighbors)
