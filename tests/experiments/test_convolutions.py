"""`--conv`: any convolution in the same job; and linear smoothing, which stands beside them."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from experiments import classify
from experiments.common.config import CONVOLUTIONS, parse
from experiments.common.learners import layers, weigh
from experiments.common.smoothing import linear_smoothing, smoothed
from jsage import data
from jsage.data import Dataset
from jsage.graph import from_edges, symmetrize
from jsage.nn import GATConv, GCNConv, SAGEConv
from jsage.recipes.tasks import make_task


def options(*given: str):
    return parse([*given], "classify", "")


@pytest.fixture(scope="module")
def communities() -> Dataset:
    """Features of noise around two means; friends are mostly of one class."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    src = rng.integers(0, 200, 1500)
    dst = np.where(
        rng.random(1500) < 0.9, (src + 2 * rng.integers(0, 100, 1500)) % 200, rng.integers(0, 200, 1500)
    )
    features = (labels[:, None] + 3 * rng.normal(size=(200, 4))).astype(np.float32)
    nodes = rng.permutation(200)
    graph = symmetrize(from_edges(src, dst, 200))
    return Dataset(graph, features, labels.astype(np.int32), nodes[:60], nodes[60:100], nodes[100:])


@pytest.mark.parametrize("weighted", [False, True])
def test_smoothing_is_a_product_with_the_normalized_matrix(weighted):
    """Isolated nodes, self-loops and parallel edges among them."""
    rng = np.random.default_rng(1)
    src, dst = np.array([0, 1, 1, 2, 2, 3, 3]), np.array([1, 0, 0, 1, 2, 2, 3])
    weight = rng.random(7) + 0.5 if weighted else np.ones(7)
    given = {"weight": weight} if weighted else {}
    x = rng.normal(size=(5, 3)).astype(np.float32)
    found = smoothed(from_edges(src, dst, 5, **given), x, 2)
    weight = np.float32(weight) / np.float32(weight).mean()
    matrix = np.eye(5)
    for u, v, w in zip(src, dst, weight, strict=True):
        matrix[v, u] = w if u == v else matrix[v, u] + w
    degree = matrix.sum(1)
    matrix = matrix / np.sqrt(degree[:, None] * degree)
    assert_allclose(found, matrix @ matrix @ x, rtol=1e-5, atol=1e-6)


def test_smoothing_beats_the_features_alone(communities):
    task = make_task(communities, None)
    scores = [linear_smoothing(task, communities, communities.graph, hops) for hops in (0, 2)]
    assert scores[0] is not None
    assert scores[1] is not None
    assert scores[1]["accuracy"] > scores[0]["accuracy"] + 0.1


def test_smoothing_reads_no_test_label(communities):
    other = communities.labels.copy()
    other[communities.test] = 1 - other[communities.test]
    changed = communities._replace(labels=other)
    plain, turned = (linear_smoothing(make_task(d, None), d, d.graph, 2) for d in (communities, changed))
    assert plain is not None
    assert turned is not None
    assert plain["accuracy"] + turned["accuracy"] == pytest.approx(1)


def test_names_are_convolutions():
    made = {name: layers(options("--conv", name, "--dropout", "0.3")) for name in CONVOLUTIONS}
    assert made["sage"]["conv"].func is SAGEConv
    assert made["gcn"]["conv"] is GCNConv
    hidden, last = made["gat"]["conv"](features=64), made["gat"]["last_conv"](features=3)
    assert isinstance(hidden, GATConv)
    assert (hidden.heads, last.heads, hidden.attention_dropout) == (8, 1, 0.3)
    assert layers(options("--conv", "gat", "--full-batch"))["conv"](features=64).attention_dropout == 0


def test_gcn_has_its_weights(communities):
    dataset, training = weigh(communities, communities.graph, options("--conv", "gcn"))
    assert set(dataset.graph.edge_data) == {"weight", "own_weight"}
    assert training is dataset.graph
    assert weigh(communities, communities.graph, options("--conv", "gat"))[0] is communities


@pytest.mark.slow
@pytest.mark.parametrize("conv", [name for name in CONVOLUTIONS if name != "sage"])
def test_a_short_run_learns(conv, communities, tmp_path):
    data.save(tmp_path / "graph", communities)
    given = ["--dataset", str(tmp_path / "graph"), "--conv", conv, "--epochs", "40", "--hidden", "16"]
    given += ["--dropout", "0.1", "--heads", "2", "--batch-size", "32"]
    found = classify.main(options(*given))
    assert found["test_mean"] > 0.7
    assert found["baselines"]["linear on smoothed features"] > 0.7
