"""Links of events in time: baselines and numbers against loops over the events, and no look ahead."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from test_links import TINY, dataset_of, run, write_communities

from experiments.events import __main__ as signs
from experiments.links import __main__ as links
from experiments.links.baselines import TABLE, edgebank, table_rows
from experiments.links.config import PARTS, TEST_NEGATIVES, Config
from experiments.links.events import in_time
from experiments.links.history import RECENT, History, make_history, shared_numbers
from experiments.links.problems import by_time, event_problem
from experiments.links.problems import load as load_links
from experiments.links.scores import EventPairs, rate
from jsage.data import split_edges_by_time
from jsage.graph import from_edges

NODES, NUM = 12, 300


def events() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.integers(0, NODES, (NUM, 2)), np.sort(rng.integers(0, 100, NUM))


def asked(positive: np.ndarray, negative: np.ndarray, time: np.ndarray) -> EventPairs:
    """One kind of negatives, nothing ranked."""
    none = np.zeros((0, 1, 2), np.int32)
    return EventPairs(positive, negative, time, negative, np.zeros(len(time), bool), np.arange(0), none)


def history_of(pairs: np.ndarray, time: np.ndarray) -> tuple[History, Any]:
    split = split_edges_by_time(pairs[:, 0], pairs[:, 1], time, NODES)
    return make_history(split, NODES), split


def test_the_table_and_edgebank_are_those_of_a_loop_over_the_events():
    pairs, time = events()
    history, split = history_of(pairs, time)
    wrong = np.random.default_rng(3).integers(0, NODES, (len(split.test), 2)).astype(np.int32)
    test = asked(split.test, wrong, split.test_time)
    unit, begin = float(history.unit), split.test_time.min()
    expected, seen, frozen = [], [], []
    for (u, v), now in zip(test.all.tolist(), test.when.tolist(), strict=True):
        earlier = [(*pair, at) for pair, at in zip(pairs.tolist(), time.tolist(), strict=True) if at < now]
        met = [[at for one, other, at in earlier if (one, other) == ends] for ends in ((u, v), (v, u))]
        met += [[at for *ends, at in earlier if ends[side] == node] for node in (v, u) for side in (1, 0)]
        ages = [np.log1p((now - max(times)) / unit) if times else -1.0 for times in met]
        expected.append(ages + [len(times) for times in met])
        seen.append(bool(met[0]))
        frozen.append(any(tuple(pair) == (u, v) for pair in pairs[time < begin].tolist()))
    np.testing.assert_allclose(table_rows(history, test.all, test.when), expected, rtol=1e-5)
    found = edgebank(split, test)
    np.testing.assert_array_equal(found["EdgeBank"], seen)
    np.testing.assert_array_equal(found["EdgeBank, frozen"], frozen)
    assert 0 < np.mean(seen) < 1


def test_what_latest_neighbors_share_is_that_of_lists():
    pairs, time = events()
    history, _ = history_of(pairs[:60], time[:60])
    src, dst = np.random.default_rng(2).integers(0, NODES, (2, 50)).astype(np.int32)
    now = np.random.default_rng(4).integers(0, 40, 50).astype(np.int32)
    found = jax.jit(shared_numbers)(history, *jax.device_put((src, dst, now)))

    def latest(node: int, at: int) -> list[int]:
        met = []
        for (u, v), when in zip(pairs[:60].tolist(), time[:60].tolist(), strict=True):
            met += [other for one, other in ((u, v), (v, u)) if one == node and when < at]
        assert len(met) <= RECENT
        return met

    for row, u, v, at in zip(np.expm1(found), src.tolist(), dst.tolist(), now.tolist(), strict=True):
        one, other = latest(u, at), latest(v, at)
        common = set(one) & set(other)
        expected = []
        for mine, across in ((one, v), (other, u)):
            expected += [sum(w in common for w in mine), len(common), mine.count(across), len(set(mine))]
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-5)


def parted(*without: str) -> str:
    return ",".join(part for part in PARTS if part not in without)


@pytest.mark.parametrize(
    "parts", [parted(), pytest.param(parted("times", "attention", "counts"), marks=pytest.mark.slow)]
)
def test_what_comes_later_changes_no_score_and_no_gradient(parts: str):
    """Training events are asked at their own times; events from the last of these on become others."""
    pairs, time = events()
    config = Config(parts=parts, hidden=16, identity=8, recent=(3, 2), dropout=0.0)
    config = links.completed(config, by_time=True)
    problem = event_problem(dataset_of(from_edges(*pairs.T, num_nodes=NODES, time=time)), 0, config)
    tables = problem.tables
    later = time >= 50
    rng = np.random.default_rng(5)
    other = np.where(later[:, None], rng.permutation(pairs), pairs)
    when = np.where(later, rng.integers(50, 100, NUM), time)
    history = make_history(by_time(from_edges(*other.T, num_nodes=NODES, time=when)), NODES)
    changed = tables._replace(graph=history.both, history=history._replace(unit=tables.history.unit))
    learner = in_time(config, tables)
    rows = np.flatnonzero(np.asarray(tables.time) <= 50)[-40:].astype(np.int32)
    rows, mask = jax.device_put((rows, rows >= 0))

    @jax.jit
    def step(params, tables):
        def loss(params):
            scores = learner.forward(params, tables, rows, mask, jax.random.key(1))
            return (scores[0] ** 2).sum() + (scores[1] ** 2).sum()

        asked = tables.pairs[rows], tables.time[rows]
        return jax.value_and_grad(loss)(params), learner.predict(params, tables, *asked)

    params = jax.jit(learner.init)(jax.random.key(0), tables)
    found, expected = step(params, tables), step(params, changed)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.ptp(found[1]) > 0
    assert (np.asarray(history.into.indices) != np.asarray(tables.history.into.indices)).any()


def test_scores_of_events_are_those_of_their_parts():
    pairs = np.arange(6).reshape(3, 2)
    new, many = np.array([False, True, True]), np.zeros((2, 4, 2), np.int32)
    test = EventPairs(pairs, pairs, np.arange(3), pairs, new, np.array([0, 2]), many)
    assert test.all.shape == (3 * 3 + 8, 2)
    assert test.when.tolist() == [0, 1, 2] * 3 + [0] * 4 + [2] * 4
    scores = np.array([5, 1, 3, 2, 4, 0, 9, 9, 2, *[6, 5, 4, 3], *[2, 2, 2, 1]], float)
    found = test.rate(scores)
    assert found["auc"] == pytest.approx(6 / 9)
    assert found["auc new"] == pytest.approx(2 / 4)
    assert found["auc anyone"] == pytest.approx(2 / 9)
    assert found["mrr"] == pytest.approx((1 / 2.5 + 1) / 2)
    few = test._replace(new=~new & new, ranked=np.arange(0), many=many[:0]).rate(scores[:9])
    assert few.keys() == {"auc", "ap", "auc anyone", "ap anyone"}


@pytest.mark.parametrize("kind", TEST_NEGATIVES)
def test_negatives_of_events_are_what_the_line_says(kind: str):
    pairs, time = events()
    pairs = pairs * [1, 0] + [0, 12] + pairs[:, 1:] % 7 * [0, 1]  # from 12 nodes to 7 others; 3 are never met
    dataset = dataset_of(from_edges(*pairs.T, num_nodes=22, time=time))
    problem = event_problem(dataset, 0, Config(test_negatives=kind))
    every = {(*pair, at) for pair, at in zip(map(tuple, pairs.tolist()), time.tolist(), strict=True)}
    split = by_time(dataset.graph)
    earlier = {"val": split.train, "test": np.concatenate([split.train, split.val])}
    for name, part in (("val", problem.val), ("test", problem.test)):
        source, other = part.negative.T
        assert ((source < 12) & (other >= 12) & (other < 19)).all()
        if kind == "historical":
            met = set(map(tuple, earlier[name].tolist())) - set(map(tuple, part.positive.tolist()))
            assert set(map(tuple, part.negative.tolist())) <= met
            continue
        np.testing.assert_array_equal(source, part.positive[:, 0])
        when = np.asarray(part.time).tolist()
        assert not every & set(zip(source.tolist(), other.tolist(), when, strict=True))
    assert "12, 7, 3 nodes" in problem.drawn
    assert len(problem.plain[TABLE]) == len(problem.test.all)


def test_a_part_that_is_none_is_one_line(tmp_path, capsys):
    path = write_communities(tmp_path, times=True)
    for parts, says in (("tiems", "--parts has no 'tiems'"), ("times", "--parts needs one of")):
        assert links.run(["--dataset", path, "--parts", parts]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert says in error


@pytest.mark.slow
def test_events_that_come_again_are_found(tmp_path):
    path = write_communities(tmp_path, times=True)
    options = ("--dataset", path, *TINY, "--epochs", "15", "--out", str(tmp_path / "out"))
    result = run(*options, out=tmp_path)
    assert result["traces"] == 1
    assert (result["config"]["decoder"], result["config"]["test_negatives"]) == ("pair", "destination")
    assert set(result["baselines"]) == {"EdgeBank", "EdgeBank, frozen", TABLE}
    assert result["config"].keys() == {field.name for field in dataclasses.fields(Config)}
    assert result["test_mean"] > 0.8
    lines = (tmp_path / "out" / "graphsage-0" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 15
    assert (tmp_path / "out" / "graphsage-0" / "tsne.png").read_bytes().startswith(b"\x89PNG")
    best = max(json.loads(line)["val_auc"] for line in lines)
    assert result["val_mean"] == pytest.approx(best)


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["neighbors", "counts", "pairs", parted("counts"), parted("times")])
def test_any_parts_learn(tmp_path, parts: str):
    path = write_communities(tmp_path, times=True)
    result = run("--dataset", path, *TINY, "--epochs", "8", "--parts", parts, out=tmp_path)
    assert result["val_mean"] > (0.5 if parts in ("neighbors", "counts") else 0.6)


@pytest.mark.parametrize(
    ("name", "auc", "ap"),
    [("collegemsg", 0.8436, 0.8314), ("bitcoin_alpha", 0.4942, 0.5)],
)
def test_edgebank_scores_what_the_data_page_says(data_folder, name: str, auc: float, ap: float):
    """There any node is a destination, also one that the source has an event with at that time.

    On temporal_enron the page counts events of that very time that stand before in the file; here none is.
    """
    graph = load_links(Config(dataset=str(data_folder / f"{name}.npz")))[0].graph
    split = by_time(graph)
    others = np.random.default_rng(0).integers(0, graph.num_nodes, len(split.test))
    wrong = np.stack([split.test[:, 0], others], 1).astype(np.int32)
    test = asked(split.test, wrong, split.test_time)
    values = edgebank(split, test)["EdgeBank"]
    found = rate(values[: len(wrong)], values[len(wrong) : 2 * len(wrong)], ranked=False)
    assert found == pytest.approx({"auc": auc, "ap": ap}, abs=0.004)  # other draws of the negatives


def write_ratings(folder) -> str:
    """Events of 40 nodes, ten of which are rated below 0 by most."""
    rng = np.random.default_rng(0)
    src, dst = rng.integers(0, 40, (2, 1500))
    bad = rng.random(1500) < np.where(dst < 10, 0.8, 0.1)
    path = folder / "ratings.npz"
    arrays = {"edge_index": np.stack([src, dst]), "edge_time": np.sort(rng.integers(0, 9000, 1500))}
    np.savez(path, meta=np.array(json.dumps({"nodes": 40})), edge_weight=np.where(bad, -1.0, 1.0), **arrays)
    return str(path)


@pytest.mark.slow
def test_bad_ratings_are_foreseen(tmp_path):
    arguments = ("--hidden", "16", "--batch-size", "128", "--epochs", "15", "--lr", "0.01")
    path, out = write_ratings(tmp_path), str(tmp_path / "signs.json")
    assert signs.run(["--dataset", path, *arguments, "--json", out]) == 0
    result = json.loads((tmp_path / "signs.json").read_text())
    assert (result["metric"], result["traces"]) == ("auroc", 1)
    assert result["test_mean"] > 0.7
    assert result["baselines"]["boosted tree"] > 0.7


def test_events_labeled_1_are_those_below_0_of_each_part():
    pairs, time = events()
    _, split = history_of(pairs, time)
    labels = np.random.default_rng(6).integers(0, 2, NUM)
    found = signs.marked_of(split, labels)
    everything = np.concatenate([split.train, split.val, split.test])
    cuts = np.cumsum([len(split.train), len(split.val)])
    for part, rows, kept in zip(
        (found.train, found.val, found.test),
        np.split(everything, cuts),
        np.split(labels == 1, cuts),
        strict=True,
    ):
        np.testing.assert_array_equal(part, rows[kept])
    assert len(found.test_time) == len(found.test)


def test_what_has_no_labels_is_one_line(tmp_path, capsys):
    path = write_communities(tmp_path, times=True)
    for arguments, says in (
        (("--dataset", "missing.npz"), "expected an .npz file"),
        (("--dataset", path), "need edge data 'weight'"),
    ):
        assert signs.run(list(arguments)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert says in error
