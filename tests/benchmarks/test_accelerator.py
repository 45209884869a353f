"""`benchmarks.accelerator` on a tiny graph: every part has a row, and a missing torch is said."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import accelerator, common, make_graph, train
from benchmarks.step import num_classes, place
from jsage.infer import embed_all
from jsage.nn import GraphSAGE

TINY = make_graph.Size(300, 3_000, 8, 4, 2.4, 100, 50)


@pytest.mark.slow
def test_every_part_has_a_row_and_a_missing_torch_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(make_graph.SIZES, "tiny", TINY)
    sizes = {"--sizes": "tiny", "--repetitions": "1", "--steps": "2", "--batch-size": "16", "--hidden": "8"}
    given = [text for pair in sizes.items() for text in pair] + ["--fanouts", "3,2"]
    folder, out = ["--folder", str(tmp_path / "graphs")], tmp_path / "out.json"
    torch = ["--torch-python", "no-such-python"]
    arguments = [*given, *folder, *torch, "--json", str(out)]
    assert common.run(accelerator.options(), accelerator.main, arguments) == 0
    rows = json.loads(out.read_text())["rows"]
    found = [(row["part"], row.get("convolution"), row.get("form")) for row in rows]
    steps = [("step", name, form) for form in ("trees", "compacted") for name in ("mean", "gatv2")]
    sampling = [("sampling", None, form) for form in ("trees", "compacted")]
    others = [("full_batch", None, None), ("embed_all", None, None)]
    assert sorted(map(str, found)) == sorted(
        map(str, [*steps, *sampling, *others, *(("torch", None, form) for form in accelerator.PEERS)])
    )
    for row in rows:
        if row["part"] == "torch":
            assert "no-such-python" in row["not_run"]
        else:
            assert 0 < row["seconds_min"] <= row["seconds_median"]
        if row["part"] == "step":
            steps_of_epoch = -(-TINY.num_train // 16)
            assert np.isclose(row["epochs_per_second"] * row["seconds_min"] * steps_of_epoch, 1)
        if "floor_seconds" in row:
            assert np.isclose(row["ratio_to_floor"], row["seconds_min"] / row["floor_seconds"])


def test_the_floor_counts_each_edge_once_a_layer_and_the_gradients_matmuls(monkeypatch):
    dataset = make_graph.make(TINY)
    tables, widths = place(dataset), (8, 16, 4)
    rates = type("Rates", (), {"bytes": 1e9})()
    monkeypatch.setattr(train, "matmul_rate", lambda *shape, dtype: 1e12)
    edges, nodes = dataset.graph.num_edges, dataset.graph.num_nodes
    reads = np.array([8, 4]) * 4 * edges
    matmuls = 4 * nodes * np.array([8 * 16, 16 * 4])
    once = accelerator.floor_seconds(rates, tables, widths, 1)
    assert np.isclose(once, reads.sum() / 1e9 + matmuls.sum() / 1e12)
    twice = accelerator.floor_seconds(rates, tables, widths, 2)
    assert np.isclose(twice, (reads[0] + 2 * reads[1]) / 1e9 + (2 * matmuls[0] + 3 * matmuls[1]) / 1e12)


@pytest.mark.slow
def test_the_whole_graphs_calls_are_a_training_step_and_exact_inference():
    dataset = make_graph.make(TINY)
    tables = place(dataset)
    calls, temporaries = accelerator.whole_calls(
        tables, jnp.asarray(dataset.train), (8, 16, num_classes(dataset))
    )
    params, _ = calls["full_batch"]()
    before = calls["full_batch"].args[0]
    model = GraphSAGE(16, num_classes(dataset), num_layers=2)
    rows = embed_all(model, before, tables.graph, tables.features)
    assert np.allclose(calls["embed_all"](), rows, atol=1e-6)
    moved = [np.abs(a - b).max() for a, b in zip(*map(leaves, (params, before)), strict=True)]
    assert np.allclose(moved, 0.003, atol=1e-4)  # Adam's first step
    assert temporaries["full_batch"] > 0


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]
