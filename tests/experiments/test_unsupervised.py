"""Embeddings without labels and the linear probe: run as users run it, on small graphs; each part alone."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from test_experiments import KEYS, PNG, read_lines, write_npz

from experiments import unsupervised
from experiments.classify import load
from experiments.options import read
from experiments.pairs import OBJECTIVES, draw_pairs, make_source
from experiments.probe import PENALTIES, fit_probe, make_fit
from experiments.tasks import make_task
from experiments.unsupervised import Config, both_tables
from jsage.data import Dataset
from jsage.graph import from_edges, in_degrees
from jsage.nn import l2_normalize

TINY = ("--layers", "1", "--fanouts", "4", "--hidden", "8", "--width", "8", "--batch-size", "32")
TINY += ("--aggregator", "mean", "--dropout", "0", "--lr", "0.02", "--steps", "10", "--epochs", "4")


def run(*arguments: str, out) -> dict:
    assert unsupervised.run([*arguments, "--json", str(out / "result.json")]) == 0
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def easy(tmp_path_factory) -> str:
    """Three communities, whose features are mostly noise."""
    return write_npz(tmp_path_factory.mktemp("npz"), "classes", features=True)


@pytest.mark.parametrize("objective", OBJECTIVES)
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


def test_rows_of_many_labels_without_features(tmp_path):
    path = write_npz(tmp_path, "multilabel", features=False)
    result = run("--dataset", path, *TINY, "--identity", "8", out=tmp_path)
    assert result["metric"] == "micro_f1"
    assert "features" not in result["baselines"]
    assert result["test_mean"] > result["baselines"]["commonest labels"]


def test_on_the_digits_no_table_holds_a_label_or_an_edge_of_a_test_node():
    config = Config()
    dataset, hidden = load(config.common)
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


def test_the_probe_is_logistic_regression():
    dataset = toy()
    task = make_task(dataset)
    rows = l2_normalize(dataset.features)[:40]
    kernels, biases = make_fit(task)(rows, jnp.asarray(task.labels[:40]), jnp.asarray(PENALTIES))
    for kernel, bias, penalty in list(zip(kernels, biases, PENALTIES, strict=True))[:4]:
        reference = LogisticRegression(C=1 / (40 * penalty), tol=1e-8, max_iter=5000)
        reference.fit(np.asarray(rows, np.float64), dataset.labels[:40])
        assert_allclose(kernel.T, reference.coef_, atol=5e-3 * np.abs(reference.coef_).max())
        found = jax.nn.softmax(rows @ kernel + bias[None])
        assert_allclose(found, reference.predict_proba(rows), atol=2e-3)


def test_the_probe_is_chosen_by_validation_and_reads_no_test_label():
    dataset = toy()
    task = make_task(dataset)
    fit = make_fit(task)
    probe = fit_probe(fit, task, dataset, dataset.features)
    rows, labels = dataset.features, dataset.labels
    given = l2_normalize(rows[:40]), jnp.asarray(labels[:40]), jnp.asarray(PENALTIES)
    shares = [
        np.mean(np.argmax(l2_normalize(rows[40:60]) @ kernel + bias[None], 1) == labels[40:60])
        for kernel, bias in zip(*fit(*given), strict=True)
    ]
    assert probe.score == pytest.approx(max(shares))
    changed = np.concatenate([labels[:60], 2 - labels[60:]])
    other = fit_probe(fit, make_task(dataset._replace(labels=changed)), dataset, rows)
    assert_array_equal(other.kernel, probe.kernel)
    moved = fit_probe(fit, task, dataset, rows * jnp.linspace(1, 9, 90)[:, None])  # rows are scaled
    assert_allclose(moved.kernel, probe.kernel, rtol=0.05, atol=0.01)


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
    config = read(Config, {}, ["--hidden", "9", "--fanouts", "3,2", "--labels", "z"], "unsupervised", "")
    assert (config.common.hidden, config.common.fanouts, config.common.labels) == (9, (3, 2), "z")
