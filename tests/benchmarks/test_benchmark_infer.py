"""The inference benchmark on a tiny graph, and what it makes of the answers."""

import json
import os

import numpy as np
import pytest

from benchmarks import common, infer, make_graph
from benchmarks.peers import jsage_infer
from jsage import data

TINY = make_graph.Size(300, 3_000, 8, 4, 2.4, 100, 50)
OURS, FILE, THEIRS = ("jsage", "device"), ("jsage", "file"), ("pyg", "sparse")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "tiny"
    data.save(path, make_graph.make(TINY))
    return path


def answers(*seconds, peak=10, row=1.0):
    return [{"seconds": s, "peak_rss_bytes": peak, "rows": [[row]]} for s in seconds]


def test_figures_leave_the_first_round_out():
    found = {OURS: answers(9, 1, 2), FILE: answers(9, 2, 2), THEIRS: answers(90, 3, 8, peak=40, row=1.25)}
    rows = dict(infer.compare(found, dict.fromkeys(found), nbytes=4))
    assert rows[THEIRS]["ratios_to_jsage"] == [3, 4]
    assert rows[THEIRS]["ratio_to_jsage"] == 3.5
    assert rows[THEIRS]["peak_bytes_beyond_data"] == 36
    assert rows[THEIRS]["largest_difference"] == 0.25
    assert rows[FILE]["seconds_median"] == 2


@pytest.mark.slow
def test_what_could_not_be_run_says_why_and_our_own_failure_is_no_row():
    found = {OURS: answers(9, 1), FILE: answers(9, 1), THEIRS: []}
    lacking = {**dict.fromkeys(found), THEIRS: "MemoryError: too large"}
    assert dict(infer.compare(found, lacking, 4))[THEIRS] == {"not_run": "MemoryError: too large"}
    with pytest.raises(RuntimeError, match="our own inference failed: no"):
        infer.compare(found, {**lacking, FILE: "no"}, 4)


@pytest.mark.slow
def test_our_forms_agree_with_numpy(folder, tmp_path):
    options = infer.options().parse_args(["--graph", str(folder), "--hidden", "12", "--out", "5"])
    dataset = data.open(folder)
    path = infer.parameters(tmp_path / "p.npz", 8, options)
    graph, h, p = dataset.graph, np.asarray(dataset.features, np.float64), np.load(path)
    adjacency = np.zeros((300, 300))
    np.add.at(adjacency, (np.repeat(np.arange(300), np.diff(graph.indptr)), np.asarray(graph.indices)), 1)
    adjacency /= np.maximum(adjacency.sum(1, keepdims=True), 1)
    for k in range(2):
        h = np.maximum(h, 0) if k else h
        h = h @ p[f"self_{k}"] + adjacency @ h @ p[f"neigh_{k}"] + p[f"bias_{k}"]
    side = jsage_infer.Inference(folder)
    for form in ("device", "file"):
        request = {"form": form, "parameters": path, "target": str(tmp_path / "a.npy"), "check": [0, 299]}
        np.testing.assert_allclose(side(request)["rows"], h[[0, 299]], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_command_kills_and_resumes(folder, tmp_path):
    python = os.environ.get("JSAGE_PEER_PYTHON")  # an interpreter with torch and torch_geometric
    target = tmp_path / "infer.json"
    arguments = [
        "--graph",
        str(folder),
        "--json",
        str(target),
        "--hidden",
        "12",
        "--out",
        "5",
        "--rounds",
        "1",
    ]
    arguments += ["--peer-python", python, "--peer-forms", *infer.FORMS] if python else []
    assert common.run(infer.options(), infer.main, arguments) == 0
    rows = json.loads(target.read_text())["rows"]
    assert {"side": "jsage", "form": "file, killed and resumed", "bit_identical": True} in rows
    for row in rows[:-1]:
        assert "not_run" in row or (row["ratio_to_jsage"] > 0 and row["largest_difference"] < 1e-3)
