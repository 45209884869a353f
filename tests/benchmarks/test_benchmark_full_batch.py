"""The benchmark of whole-graph aggregation on a tiny graph: every row is there, and all layouts agree."""

import json
import os

import numpy as np
import pytest

from benchmarks import common, full_batch, make_graph
from jsage import data
from jsage.graph import in_degrees


@pytest.fixture(scope="module")
def dataset():
    return make_graph.make(make_graph.Size(300, 3_000, 8, 4, 2.4, 100, 50))


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "tiny"
    data.save(path, dataset)
    return path


def report(folder, target, *more: str) -> dict:
    arguments = ["--graph", str(folder), "--json", str(target), "--rounds", "2", *more]
    assert common.run(full_batch.options(), full_batch.main, arguments) == 0
    return json.loads(target.read_text())


@pytest.fixture(scope="module")
def rows(folder, tmp_path_factory):
    peer = os.environ.get("JSAGE_PEER_PYTHON")
    more = ["--peer-python", peer] if peer else []
    found = report(folder, tmp_path_factory.mktemp("out") / "full.json", *more)
    assert found["benchmark"] == "full_batch"
    return {(row["op"], row["layout"], row["pass"]): row for row in found["rows"]}


def test_a_row_for_every_form(rows):
    expected = {
        (op, layout, way)
        for op in ("mean", "max")
        for layout in ("classes", "segments", "scipy")
        for way in full_batch.PASSES
        if (op, layout) != ("max", "scipy")
    }
    assert expected == {form for form in rows if not form[1].startswith("pyg")}
    for row in rows.values():
        assert 0 < row["seconds_min"] <= row["seconds_median"]
        assert row["rounds"] == len(row["ratios_to_classes"]) == 2
        assert row["peak_rss_bytes"] > 2**26
    assert rows["mean", "classes", "forward"]["ratio_to_classes"] == 1
    assert rows["mean", "classes", "forward"]["build_seconds"] > 0


def test_all_layouts_compute_the_same(rows):
    for (op, _, way), row in rows.items():
        expected = rows[op, "classes", way]["checksum"]
        assert row["checksum"] == pytest.approx(expected, rel=1e-5)


def test_the_checksum_is_that_of_the_mean(rows, dataset):
    degree = np.maximum(np.asarray(in_degrees(dataset.graph)), 1)[:, None]
    dst = np.repeat(np.arange(300), np.asarray(in_degrees(dataset.graph)))
    total = np.zeros((300, 8))
    np.add.at(total, dst, np.asarray(dataset.features, np.float64)[np.asarray(dataset.graph.indices)])
    assert rows["mean", "scipy", "forward"]["checksum"] == pytest.approx(
        np.abs(total / degree).mean(), rel=1e-5
    )


def test_what_does_not_fit_has_a_row_that_says_why(dataset, monkeypatch):
    monkeypatch.setattr(full_batch, "memory_bytes", lambda: 10_000)
    calls = full_batch.segments(dataset.graph, np.asarray(dataset.features))
    answers, lacking = full_batch.measure(calls, rounds=1)
    figures = full_batch.compare(answers, lacking)
    assert set(figures) == {(op, "segments", way) for op in full_batch.OPS for way in full_batch.PASSES}
    assert all("messages and their gradient take" in row["not_run"] for row in figures.values())


def test_ratios_compare_the_same_round_and_the_first_is_left_out():
    def turns(*seconds: float):
        left = iter(seconds)
        return lambda: {"seconds": next(left), "peak_rss_bytes": 5, "checksum": 1.0}

    ours, theirs, broken = (("mean", name, "forward") for name in ("classes", "theirs", "broken"))
    calls = {ours: turns(9, 1, 2), theirs: turns(99, 3, 8), broken: lambda: {"error": "MemoryError"}}
    figures = full_batch.compare(*full_batch.measure(calls, rounds=2))
    assert figures[theirs]["ratios_to_classes"] == [3, 4]
    assert figures[theirs]["ratio_to_classes"] == 3.5
    assert figures[theirs]["seconds_min"] == 3
    assert figures[broken] == {"not_run": "MemoryError"}


def test_a_graph_without_features_is_one_clear_line(dataset, tmp_path, capsys):
    data.save(tmp_path / "bare", dataset._replace(features=None))
    arguments = ["--graph", str(tmp_path / "bare"), "--json", "-"]
    assert common.run(full_batch.options(), full_batch.main, arguments) == 2
    assert "needs features" in capsys.readouterr().err
