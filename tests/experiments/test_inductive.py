"""Train without the test nodes, meet them afterwards: run as users run it, on small graphs."""

import json

import numpy as np
import pytest
from test_experiments import BATCHES, KEYS, MODEL, TINY, write_npz

from experiments import inductive
from experiments.common.config import Config
from experiments.common.datasets import load
from jsage.graph import edges

MORE = {"rebuilt_mean", "largest_difference", "new_nodes", "new_edges", "seconds_per_new_node"}
MORE |= {"seconds_one_node_p50", "seconds_one_node_p99"}


def run(*arguments: str, out) -> dict:
    assert inductive.run([*arguments, "--json", str(out / "result.json")]) == 0
    return json.loads((out / "result.json").read_text())


@pytest.mark.slow
def test_on_the_digits_new_nodes_score_as_on_the_rebuilt_graph(tmp_path):
    result = run(*MODEL, "--epochs", "20", out=tmp_path)
    assert result.keys() == KEYS | MORE
    assert result["test_mean"] == pytest.approx(result["rebuilt_mean"], abs=1e-3)
    assert result["largest_difference"] < 1e-5
    assert result["test_mean"] > result["baselines"]["MLP (features only)"] > 0.5
    assert result["test_mean"] > 0.85
    assert result["new_nodes"] == len(load(Config())[0].test)
    assert 0 < result["seconds_one_node_p50"] <= result["seconds_one_node_p99"] < 60


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["multilabel", pytest.param("real", marks=pytest.mark.slow)])
def test_every_task_scores_new_nodes(tmp_path, labels: str):
    path = write_npz(tmp_path, labels, features=True)
    result = run("--dataset", path, *TINY, *BATCHES, "--epochs", "3", out=tmp_path)
    assert result["test_mean"] == pytest.approx(result["rebuilt_mean"], abs=1e-4)
    assert result["new_nodes"] == 15


@pytest.mark.slow
@pytest.mark.parametrize("batches", ["clusters", "saint"])
def test_new_nodes_after_training_on_subgraphs(tmp_path, batches: str):
    path = write_npz(tmp_path, "classes", features=True)
    options = (*TINY, "--batches", batches, "--subgraph", "20", "--epochs", "9")
    result = run("--dataset", path, *options, out=tmp_path)
    assert result["test_mean"] == pytest.approx(result["rebuilt_mean"], abs=1e-4)
    assert result["test_mean"] > 0.6


def test_cutting_loses_no_edge_and_hides_every_new_node(tmp_path):
    dataset, _ = load(Config(dataset=write_npz(tmp_path, "classes", features=True)))
    graph, features, new = inductive.cut(dataset)
    test = np.asarray(dataset.test)
    known = np.setdiff1d(np.arange(60), test)
    names = np.concatenate([known, test])  # of the ids after the cut
    assert graph.num_nodes == len(features) == 45
    np.testing.assert_array_equal(features, np.asarray(dataset.features)[known])
    np.testing.assert_array_equal(new.features, np.asarray(dataset.features)[test])
    assert (np.minimum(new.src, new.dst) < 0).all()
    ends = (np.where(end < 0, 44 - end, end) for end in (new.src, new.dst))
    kept = [tuple(names[list(pair)]) for pair in zip(*map(np.asarray, edges(graph)), strict=True)]
    kept += [tuple(names[list(pair)]) for pair in zip(*ends, strict=True)]
    assert sorted(kept) == sorted(
        zip(*map(np.ndarray.tolist, map(np.asarray, edges(dataset.graph))), strict=True)
    )


@pytest.mark.parametrize(
    "arguments", [("--aggregator", "lstm"), ("--dataset", "missing.npz")], ids=["lstm", "missing"]
)
def test_what_cannot_be_done_is_one_line(capsys, arguments):
    assert inductive.run(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "lstm" in error or "missing.npz" in error


def test_the_help_is_its_own(capsys):
    with pytest.raises(SystemExit):
        inductive.run(["--help"])
    assert "experiments.inductive" in capsys.readouterr().out
