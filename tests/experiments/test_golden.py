"""Layers beside golden values: PyG's where its files are at hand, and a file made here by NumPy formulas."""

import json
from pathlib import Path
from typing import Any

import formulas
import numpy as np
import pytest

from experiments import golden
from experiments.golden import __main__ as program
from experiments.golden.files import read_cases
from experiments.golden.layers import Unsupported, layer_of

NODES, WIDTH, EDGE, OUT = 9, 3, 2, 4
LAYOUTS = ("indexed", "tree", "segments", "sliced", "exact", "streamed")


@pytest.fixture(scope="module")
def golden_folder(data_folder: Path) -> Path:
    folder = data_folder.parent / "golden"
    if not folder.is_dir():
        pytest.skip(f"no golden values at {folder}")
    return folder


def run(path: Path, *arguments: str, out: Path) -> tuple[int, list[dict[str, Any]]]:
    status = program.run([str(path), *arguments, "--json", str(out / "golden.json")])
    return status, json.loads((out / "golden.json").read_text())["rows"]


def drawn() -> dict[str, np.ndarray]:
    """A graph in PyG's arrays: a loop, parallel edges, nodes without any."""
    random = np.random.default_rng(0)
    dst = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 5, 5])
    src = np.array([1, 2, 0, 0, 0, 3, 4, 5, 6, 5, 1])
    return {
        "x": random.normal(size=(NODES, WIDTH)).astype(np.float32),
        "edge_index": np.stack([src, dst]),
        "edge_attr": random.normal(size=(len(src), EDGE)).astype(np.float32),
    }


def transformer() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A case of two heads with features of edges, a gate, and PyG's names."""
    random, graph = np.random.default_rng(1), drawn()
    shapes = {"lin_key": WIDTH, "lin_query": WIDTH, "lin_value": WIDTH, "lin_edge": EDGE, "lin_skip": WIDTH}
    params = {f"{name}.weight": random.normal(size=(OUT, width)) for name, width in shapes.items()}
    params |= {f"{name}.bias": random.normal(size=OUT) for name in shapes if name != "lin_edge"}
    params |= {"lin_beta.weight": random.normal(size=(1, 3 * OUT))}
    params = {name: x.astype(np.float32) for name, x in params.items()}
    kwargs = {"heads": 2, "beta": True, "edge_dim": EDGE}
    config = {"class": "TransformerConv", "args": [WIDTH, OUT // 2], "kwargs": kwargs, "graph": "g"}
    return config | {"inputs": ["x", "edge_index", "edge_attr"]}, params | graph


def forward(given: dict[str, np.ndarray]) -> np.ndarray:
    """The layer by the formula of its paper, in float64."""
    names = {"query": "lin_query", "key": "lin_key", "value": "lin_value", "self": "lin_skip"}
    p = {
        ours: {"kernel": given[f"{theirs}.weight"].T, "bias": given[f"{theirs}.bias"]}
        for ours, theirs in names.items()
    }
    p |= {
        "edge": {"kernel": given["lin_edge.weight"].T},
        "beta": {"kernel": given["lin_beta.weight"].T},
    }
    (src, dst), out = given["edge_index"], []
    for node in range(NODES):
        mine = np.flatnonzero(dst == node)
        read = formulas.Reads(node, src[mine].tolist(), mine.tolist())
        options = {"heads": 2, "beta": True, "edge": "attr"}
        out.append(formulas.transformer(p, given["x"], read, given["edge_attr"][mine], options)[0])
    return np.stack(out)


def write(folder: Path, **changed: Any) -> Path:
    """A file of the format, with gradients by differences in float64; `changed` replaces arrays of it."""
    config, given = transformer()
    given = {name: x if name == "edge_index" else x.astype(np.float64) for name, x in given.items()}
    out = forward(given)
    cotangent, grads, step = np.random.default_rng(2).normal(size=out.shape), {}, 1e-6
    for name, value in given.items():
        if name != "edge_index":
            grad = np.zeros(value.shape)
            for at in np.ndindex(value.shape):
                moved = [value.copy(), value.copy()]
                moved[0][at] += step
                moved[1][at] -= step
                change = [(forward({**given, name: x}) * cotangent).sum() for x in moved]
                grad[at] = (change[0] - change[1]) / (2 * step)
            grads[name if name in drawn() else f"param/{name}"] = grad
    arrays = {f"g/{name}": given[name] for name in drawn()}
    arrays |= {f"made/param/{name}": x for name, x in given.items() if name not in drawn()}
    arrays |= {"made/out": out, "made/loss_weight": cotangent, "made/config": json.dumps(config)}
    arrays |= {f"made/grad/{name}": x for name, x in grads.items()} | {"made/err64": np.full(3, 1e-7)}
    arrays |= {"cases": json.dumps(["made", "typed"]), "typed/config": json.dumps(TYPED)}
    arrays |= changed
    floats = {name: np.float32(x) for name, x in arrays.items() if np.asarray(x).dtype == np.float64}
    np.savez(folder / "made.npz", **{**arrays, **floats})
    return folder / "made.npz"


TYPED = {"class": "RGCNConv", "args": [3, 4, 2], "kwargs": {}, "graph": "g", "inputs": ["x", "edge_index"]}


@pytest.mark.slow
def test_a_made_up_file_is_met_on_every_layout(tmp_path, capsys):
    status, rows = run(write(tmp_path), out=tmp_path)
    assert status == 0
    assert [row["layout"] for row in rows] == [*LAYOUTS, "all"]
    for row in rows[:-1]:
        assert row["ok"], row
        assert row["tolerance"] == pytest.approx(1.1e-5)
        assert row["output"] <= 1.1e-5
        assert (row["grad_inputs"] is None) == (row["layout"] in ("exact", "streamed"))
    assert rows[-1] == {"case": "typed", "layout": "all", "skipped": "no layer reads types of edges yet"}
    assert "skipped: typed, all: no layer reads types" in capsys.readouterr().out


@pytest.mark.slow
def test_a_wrong_number_anywhere_ends_with_status_1(tmp_path):
    config, _ = transformer()
    good = dict(np.load(write(tmp_path)))
    for name in ("made/out", "made/grad/x", "made/grad/param/lin_beta.weight"):
        wrong = np.array(good[name])
        wrong.flat[1] += 1e-3
        status, rows = run(write(tmp_path, **{name: wrong}), "--cases", "made", out=tmp_path)
        assert status == 1
        assert [row["ok"] for row in rows] == [False] * 4 + [name != "made/out"] * 2
    one_head = {**config, "kwargs": {**config["kwargs"], "beta": False}}
    status, rows = run(
        write(tmp_path, **{"made/config": json.dumps(one_head)}), "--cases", "made", out=tmp_path
    )
    assert status == 1
    assert not any(row["ok"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("missing.npz",), "missing.npz"),
        (("bad.npz",), "must be an .npz file of golden values"),
        (("other.npz",), "no list of `cases`"),
        (("made.npz", "--cases", "none"), "has no case 'none', but made, typed"),
        (("short.npz",), "has no array 'typed/config'"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    Path("bad.npz").write_bytes(b"no zip")
    np.savez("other.npz", y=np.ones(3))
    config = json.dumps(TYPED)
    graph = {f"g/{name}": x for name, x in drawn().items()}
    np.savez(
        "made.npz",
        cases=json.dumps(["made", "typed"]),
        **{"made/config": config, "typed/config": config},
        **graph,
    )
    np.savez("short.npz", cases=json.dumps(["typed"]))
    assert program.run(list(arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error


def test_the_file_must_be_given_and_the_help_is_its_own(capsys):
    for arguments, status in (([], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as ended:
            program.run(arguments)
        assert ended.value.code == status
    assert "experiments.golden FILE [--option value ...]" in capsys.readouterr().out
    assert golden.__doc__


def built(kind: str, **kwargs: Any):
    config = {"class": kind, "args": [3, 4], "kwargs": kwargs}
    case = read_cases.__globals__["Case"]("one", config, {}, {}, np.ones((1, 4)), None, {}, None, 0.0)
    return layer_of(case)


@pytest.mark.parametrize(
    ("kind", "kwargs", "says"),
    [
        ("FooConv", {}, "there is no FooConv"),
        ("GATConv", {"aggr": "max"}, "no argument aggr of GATConv is known"),
        ("SAGEConv", {"aggr": "median"}, "no aggregator 'median'"),
        ("SAGEConv", {"aggr": "softmax", "aggr_kwargs": {"semi_grad": True}}, "no arguments"),
        ("SAGEConv", {"aggr": ["mean", "lstm"]}, "beside other aggregators"),
    ],
)
def test_what_is_not_built_is_skipped_with_the_reason(kind, kwargs, says):
    with pytest.raises(Unsupported, match=says):
        built(kind, **kwargs)


QUICK = "transformer_edge,gatv2"


@pytest.mark.parametrize(
    ("file", "cases"),
    [("pyg_open.npz", "hetero_sage_max"), ("pyg_layers.npz", "hetero_gat,hetero_sage_mean")],
)
def test_layers_of_types_are_met_on_whole_graphs_and_samples(golden_folder, tmp_path, file, cases):
    status, rows = run(golden_folder / file, "--cases", cases, out=tmp_path)
    assert status == 0
    assert sorted((row["case"], row["layout"], row["ok"]) for row in rows) == [
        (case, layout, True) for case in cases.split(",") for layout in ("segments", "tree")
    ]
    assert all((row["grad_params"] is not None) == (file == "pyg_open.npz") for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "least"), [("pyg_open.npz", 180), ("pyg_layers.npz", 100)])
def test_every_case_of_pyg_is_met(golden_folder, tmp_path, file, least):
    status, rows = run(golden_folder / file, out=tmp_path)
    assert [row for row in rows if row.get("ok") is False] == []
    assert status == 0
    assert sum(row.get("ok", False) for row in rows) >= least
    assert all(row["skipped"] for row in rows if "ok" not in row)


@pytest.mark.slow
def test_weights_of_attention_are_pygs(golden_folder, tmp_path):
    status, rows = run(golden_folder / "pyg_layers.npz", "--cases", QUICK, out=tmp_path)
    assert status == 0
    assert {row["layout"] for row in rows if row["attention"] is not None} == {"indexed", "tree", "segments"}
