"""`--conv`: any convolution in the same job; and linear smoothing, which stands beside them."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from experiments import classify
from experiments.common import auto
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
    assert scores[1].scores["accuracy"] > scores[0].scores["accuracy"] + 0.1


def test_smoothing_reads_no_test_label(communities):
    other = communities.labels.copy()
    other[communities.test] = 1 - other[communities.test]
    changed = communities._replace(labels=other)
    plain, turned = (linear_smoothing(make_task(d, None), d, d.graph, 2) for d in (communities, changed))
    assert plain is not None
    assert turned is not None
    assert plain.scores["accuracy"] + turned.scores["accuracy"] == pytest.approx(1)


def test_names_are_convolutions():
    made = {name: layers(options("--conv", name, "--dropout", "0.3")) for name in CONVOLUTIONS}
    assert made["sage"]["conv"].func is SAGEConv
    assert made["gcn"]["conv"] is GCNConv
    hidden, last = made["gat"]["conv"](features=64), made["gat"]["last_conv"](features=3)
    assert isinstance(hidden, GATConv)
    assert (hidden.heads, last.heads, hidden.attention_dropout) == (8, 1, 0.3)


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


SMALL_GRID = (
    auto.Candidate(auto.FEATURES, {"hidden": 4}),
    auto.Candidate(auto.LINEAR, {"layers": 1}),
    auto.Candidate(auto.LINEAR, {"layers": 2, "scale": "sums"}),
)


def chosen(dataset: Dataset, monkeypatch, grid=SMALL_GRID, *given: str) -> auto.Choice:
    monkeypatch.setattr(auto, "GRID", grid)
    return auto.choose(dataset, options("--conv", "auto", "--epochs", "2", *given))


def test_the_best_validation_score_is_chosen(communities, monkeypatch):
    choice = chosen(communities, monkeypatch, SMALL_GRID, "--fanouts", "7,5")
    means = {str(candidate): np.mean(scores) for candidate, scores in choice.validated}
    assert len(means) == 3
    assert means[str(choice.best)] == max(means.values())
    assert choice.best.kind == auto.LINEAR
    assert (choice.config.layers, choice.config.fanouts) == ((1, (7,)), (2, (7, 5)))[choice.config.layers - 1]
    assert choice.to_json()["chosen"]["options"] == choice.best.options
    turned = chosen(communities, monkeypatch, SMALL_GRID[::-1])
    assert str(turned.best) == str(choice.best)


def test_the_choice_reads_no_test_label(communities, monkeypatch):
    other = communities.labels.copy()
    other[communities.test] = 1 - other[communities.test]
    plain, turned = (chosen(d, monkeypatch) for d in (communities, communities._replace(labels=other)))
    assert [scores for _, scores in plain.validated] == [scores for _, scores in turned.validated]


def test_candidates_are_trained_with_as_many_seeds_as_asked(communities, monkeypatch):
    choice = chosen(communities, monkeypatch, SMALL_GRID[:1], "--tries", "2", "--runs", "5")
    assert [len(scores) for _, scores in choice.validated] == [2]
    assert (choice.config.runs, choice.config.hidden) == (5, 4)


def test_a_graph_without_features_has_networks_alone(communities):
    found = auto.candidates(communities._replace(features=None))
    assert {kind for kind, _ in found} == {auto.NETWORK}
    assert all("scale" not in given for _, given in found)
    assert len({str(one) for one in found}) == len(found)
    assert auto.candidates(communities) == list(auto.GRID)


def test_only_classify_chooses():
    with pytest.raises(ValueError, match="--conv auto is of experiments"):
        parse(["--conv", "auto"], "inductive", "")


@pytest.mark.slow
def test_the_whole_grid_on_a_small_graph(communities, tmp_path):
    data.save(tmp_path / "graph", communities)
    given = ["--dataset", str(tmp_path / "graph"), "--conv", "auto", "--epochs", "20", "--full-batch"]
    found = classify.main(options(*given, "--runs", "2"))
    assert len(found["auto"]["candidates"]) == len(auto.GRID)
    best = max(found["auto"]["candidates"], key=lambda one: one["val_mean"])
    assert found["auto"]["chosen"] == {"kind": best["kind"], "options": best["options"]}
    assert found["config"]["conv"] == "auto"
    assert found["test_mean"] > 0.7
    assert {auto.FEATURES, auto.LINEAR} < set(found["baselines"])
