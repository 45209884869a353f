"""Embeddings without labels and the linear probe: run as users run it, on small graphs; each part alone."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from test_experiments import KEYS, PNG, read_lines, write_npz

from experiments.common.config import LabelOptions, LearnerOptions
from experiments.common.datasets import load
from experiments.common.options import read
from experiments.common.probe import PENALTIES, fit, fit_probe
from experiments.unsupervised import __main__ as unsupervised
from experiments.unsupervised.__main__ import both_tables
from experiments.unsupervised.config import OBJECTIVES, Config
from experiments.unsupervised.objectives import PAIRS, draw_pairs, make_source
from jsage.data import Dataset
from jsage.graph import from_edges, in_degrees
from jsage.nn import l2_normalize
from jsage.recipes.tasks import make_task

TINY = ("--layers", "1", "--fanouts", "4", "--hidden", "8", "--width", "8", "--batch-size", "32")
TINY += ("--aggregator", "mean", "--dropout", "0", "--lr", "0.02", "--steps", "10", "--epochs", "4")


def run(*arguments: str, out) -> dict:
    assert unsupervised.run([*arguments, "--json", str(out / "result.json")]) == 0
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def easy(tmp_path_factory) -> str:
    """Three communities, whose features are mostly noise."""
    return write_npz(tmp_path_factory.mktemp("npz"), "classes", features=True)


@pytest.mark.slow
def test_two_epochs_end_with_a_score(tmp_path, easy: str):
    result = run("--dataset", easy, *TINY, "--epochs", "2", "--steps", "3", out=tmp_path)
    assert result.keys() == KEYS
    assert (result["metric"], result["epochs"], result["traces"]) == ("accuracy", [2], 1)
    assert {"features", "DeepWalk", "GraphSAGE, untrained"} <= result["baselines"].keys()
    assert result["test_mean"] > result["baselines"]["majority class"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.slow
def test_each_objective_finds_the_communities_in_one_trace(tmp_path, easy: str, objective: str):
    result = run("--dataset", easy, *TINY, "--objective", objective, "--runs", "2", out=tmp_path)
    assert result.keys() == KEYS
    assert (result["metric"], result["runs"], result["traces"]) == ("accuracy", 2, 1)
    assert result["config"]["objective"] == objective
    names = ["GraphSAGE", "features", "DeepWalk", "GraphSAGE, untrained", "majority class"]
    assert list(result["baselines"]) == names
    assert result["baselines"]["GraphSAGE"] == result["test_mean"]
    assert result["test_mean"] > max(result["baselines"]["features"], 0.8)
    assert result["baselines"]["majority class"] < 0.5


@pytest.mark.slow
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(tmp_path, easy: str):
    given = ("--dataset", easy, *TINY, "--save-every", "2", "--patience", "9")
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    run(*given, "--out", str(straight), out=tmp_path)
    run(*given, "--out", str(parts), "--epochs", "2", out=tmp_path)
    run(*given, "--out", str(parts), "--resume", out=tmp_path)
    for name in ("graphsage-0", "deepwalk-0"):
        rows, again = (np.load(folder / name / "embeddings.npy") for folder in (straight, parts))
        assert rows.shape == (60, 8)
        assert_array_equal(rows, again)
        assert read_lines(straight / name) == read_lines(parts / name)
        assert [row["epoch"] for row in read_lines(straight / name)] == [1, 2, 3, 4]
    assert (straight / "tsne.png").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_rows_of_many_labels_without_features(tmp_path):
    path = write_npz(tmp_path, "multilabel", features=False)
    result = run("--dataset", path, *TINY, "--identity", "8", out=tmp_path)
    assert result["metric"] == "micro_f1"
    assert "features" not in result["baselines"]
    assert result["test_mean"] > result["baselines"]["commonest labels"]


def test_on_the_digits_no_table_holds_a_label_or_an_edge_of_a_test_node():
    config = Config()
    dataset, hidden = load(config)
    training, everything = both_tables(dataset, hidden, config)
    assert training.labels.size == everything.labels.size == 0
    source = make_source(training)
    assert not np.isin(dataset.test, source.starts.nodes).any()
    drawn = np.unique(source.noise(jax.random.key(0), (20_000,)))
    assert not np.isin(dataset.test, drawn).any()
    assert int(in_degrees(everything.graph)[dataset.test].min()) > 0


def test_pairs_are_two_nodes_on_one_walk():
    # 0 - 1 - 2 - 0 in a ring of three; 3 <- 4, so a walk from 3 ends at 4; 5 alone
    graph = from_edges([0, 1, 2, 1, 2, 0, 4], [1, 2, 0, 0, 1, 2, 3], num_nodes=6)
    config = Config(batch_size=600, length=3, negatives=7)
    tables = both_tables(
        Dataset(graph, jnp.eye(6), jnp.zeros(6, jnp.int32), *[jnp.arange(1)] * 3), graph, config
    )
    source = make_source(tables[0])
    batch = jax.jit(partial(draw_pairs, config=config))(jax.random.key(0), source)
    src, dst = np.asarray(batch.src), np.asarray(batch.dst)
    assert batch.negatives.shape == (7,)
    assert batch.mask.all()
    assert set(src) == {0, 1, 2, 3}
    assert (src != dst).all()
    assert ((src < 3) == (dst < 3)).all()
    assert set(dst[src == 3]) == {4}
    counts = np.bincount(dst[src == 0], minlength=3)
    assert abs(counts[1] - counts[2]) < 5 * np.sqrt(counts.sum())  # the ring has a mirror


def toy() -> Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    rows = (np.eye(3)[labels] + 0.8 * rng.normal(size=(90, 3))) @ rng.normal(size=(3, 5))
    parts = np.split(np.arange(90, dtype=np.int32), [40, 60])
    return Dataset(from_edges([0], [1], num_nodes=90), jnp.asarray(rows, jnp.float32), labels, *parts)


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["classes", "two", "labels", "real", "reals"])
def test_the_probe_is_where_the_penalized_loss_is_least(labels: str):
    """Of the losses that models are trained with; convex, so a gradient of nearly 0 says it all."""
    dataset = toy()
    group = dataset.labels
    y = {
        "classes": group,
        "two": np.minimum(group, 1),
        "labels": np.stack([group == 0, group != 1], 1).astype(np.uint8),
        "real": group.astype(np.float32),
        "reals": np.stack([group, -2.0 * group + 1], 1).astype(np.float32),
    }[labels]
    task = make_task(dataset._replace(labels=y))
    rows, targets = l2_normalize(dataset.features)[:40], jnp.asarray(task.labels[:40])

    def loss(params, penalty) -> jax.Array:
        kernel, bias = params
        losses = task.loss(rows @ kernel + bias[None], targets, jnp.ones(40, bool))
        return losses.mean() + penalty / 2 * (kernel**2).sum()

    found = fit(task, np.asarray(rows, np.float64), task.labels[:40])
    assert len(found) == len(PENALTIES)
    for params, penalty in list(zip(found, PENALTIES, strict=True))[:4]:
        params = jax.tree.map(jnp.float32, params)
        assert params[0].shape == (5, task.width)
        for part in jax.tree.leaves(jax.grad(loss)(params, penalty)):
            assert_allclose(part, 0, atol=5e-4)


@pytest.mark.slow
def test_the_probe_is_chosen_by_validation_and_reads_no_test_label():
    dataset = toy()
    task = make_task(dataset)
    probe = fit_probe(task, dataset, dataset.features)
    rows, labels = dataset.features, dataset.labels
    shares = [
        np.mean(np.argmax(l2_normalize(rows[40:60]) @ kernel + bias[None], 1) == labels[40:60])
        for kernel, bias in fit(task, np.asarray(l2_normalize(rows[:40]), np.float64), labels[:40])
    ]
    assert probe.score == pytest.approx(max(shares))
    changed = np.concatenate([labels[:60], 2 - labels[60:]])
    other = fit_probe(make_task(dataset._replace(labels=changed)), dataset, rows)
    assert_array_equal(other.kernel, probe.kernel)
    moved = fit_probe(task, dataset, rows * jnp.linspace(1, 9, 90)[:, None])  # rows are scaled
    assert_allclose(moved.kernel, probe.kernel, rtol=0.05, atol=0.01)


def test_a_class_that_no_training_row_has_is_never_said():
    dataset = toy()
    task = make_task(dataset)
    for there in ([0, 2], [1]):
        some = np.flatnonzero(np.isin(dataset.labels[:40], there)).astype(np.int32)
        probe = fit_probe(task, dataset._replace(train=some), dataset.features)
        assert set(probe.outputs(dataset.features).argmax(1)) == set(there)


@pytest.mark.parametrize("edges", [True, False])
def test_what_cannot_be_done_is_one_line(tmp_path, capsys, edges: bool):
    arrays = dict(np.load(write_npz(tmp_path, "classes", features=True)))
    arrays["edge_index"] = arrays["edge_index"][:, :0]
    np.savez(tmp_path / "bare.npz", **arrays)
    path = "missing.npz" if edges else str(tmp_path / "bare.npz")
    assert unsupervised.run(["--dataset", path, *TINY]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("missing.npz" if edges else "edges") in error


@pytest.mark.parametrize("arguments", [["--objective", "guess"], ["--temperature", "-1"]])
def test_options_that_mean_nothing_are_refused(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        unsupervised.run(arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_every_option_reaches_the_shared_parts():
    config = read(Config, ["--hidden", "9", "--fanouts", "3,2", "--labels", "z"], "unsupervised", "")
    assert isinstance(config, LearnerOptions)
    assert isinstance(config, LabelOptions)
    assert (config.hidden, config.fanouts, config.labels) == (9, (3, 2), "z")


def test_every_objective_has_its_loss():
    assert set(OBJECTIVES) == {*PAIRS, "dgi"}
