"""Files and command lines that nobody would write: only documented exceptions come out, and exit status 2."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jsage import data
from jsage.data import Dataset
from jsage.graph import contiguous, from_edges
from jsage.serving import runtime
from jsage.train import checkpoint

pytestmark = pytest.mark.slow
DOCUMENTED = (ValueError, TypeError, FileNotFoundError)
few = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)

DATASET = Dataset(
    from_edges([0, 1, 2, 3], [1, 2, 3, 0], 4, weight=[1.0, 2.0, 3.0, 4.0], time=[1, 2, 3, 4]),
    np.eye(4, 3, dtype=np.float32),
    np.array([0, 1, 0, 1], np.int32),
    np.array([0, 1]),
    np.array([2]),
    np.array([3]),
)
STATE = {"w": np.arange(6, dtype=np.float32), "step": np.int32(3)}


@st.composite
def damaged(draw, good: bytes) -> bytes:
    """A file with some bytes changed, cut out, put in, or all of it replaced."""
    found = bytearray(good)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        way = draw(st.sampled_from(["change", "cut", "insert", "end", "twice", "other"]))
        if way == "change" and found:
            found[at] = draw(st.integers(0, 255))
        elif way == "cut":
            del found[at : at + draw(st.integers(1, 64))]
        elif way == "insert":
            found[at:at] = draw(st.binary(max_size=16))
        elif way == "end":
            del found[at:]
        elif way == "twice":
            found += found[at:]
        else:
            found = bytearray(draw(st.binary(max_size=64)))
    return bytes(found)


def only_documented(call: Callable[[], object]) -> None:
    """Nothing but the exceptions that the docstrings name."""
    try:
        call()
    except DOCUMENTED as error:
        said = str(error)
    else:
        said = "nothing was wrong"
    assert said.strip(), "an error without a word"


def written(kind: str, folder: Path) -> Path:
    """A good file or folder of each kind."""
    path = folder / kind
    if kind == "npz":
        path = folder / "graph.npz"
        arrays = {
            "edge_index": [[0, 1], [1, 0]],
            "y": [0, 1, 0],
            "x": np.eye(3),
            "edge_time": [1, 2],
            "meta": "{}",
            "node_name": ["a", "b", "c"],
        }
        np.savez(
            path,
            **arrays,
            **{f"{name}_mask": np.arange(3) == i for i, name in enumerate(("train", "val", "test"))},
        )
    elif kind == "directory":
        data.save(path, DATASET, [f"node {i}" for i in range(DATASET.graph.num_nodes)])
    elif kind == "shards":
        data.shard_dataset(path, DATASET, contiguous(4, 2))
    else:
        checkpoint.save(path, 1, STATE)
    return path


READERS: dict[str, Callable[[Path], object]] = {
    "npz": lambda path: (data.load_npz(path), data.read_names(path)),
    "directory": lambda path: (data.open(path), data.read_names(path)),
    "shards": lambda path: (data.verify_shards(path), data.open_shard(path, 0), data.open_shards(path)),
    "checkpoint": lambda path: checkpoint.restore(path, STATE),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's loop, left open
@pytest.mark.parametrize("kind", READERS)
def test_damaged_files(kind, tmp_path):
    """Every file of a good one in turn: other bytes, none, or gone."""
    good = written(kind, tmp_path)
    files = [good] if good.is_file() else sorted(file for file in good.rglob("*") if file.is_file())
    assert READERS[kind](good) is not None

    @few
    @given(st.data())
    def run(values):
        file = values.draw(st.sampled_from(files))
        before = file.read_bytes()
        try:
            if values.draw(st.integers(0, 9)):
                file.write_bytes(values.draw(damaged(before)))
            else:
                file.unlink()
            only_documented(lambda: READERS[kind](good))
        finally:
            file.write_bytes(before)

    run()
    assert READERS[kind](good) is not None


ODD_ARRAYS = st.one_of(
    st.builds(
        lambda shape, dtype, value: np.full(shape, value).astype(dtype),
        st.lists(st.integers(0, 3), max_size=3),
        st.sampled_from([*"?bBhHiIlLqQefdgFDSUmM"]),
        st.sampled_from([0, 1, 2, 3, 200]),
    ),
    st.sampled_from(
        [np.array([[0, 1], [1, 0]]), np.array([np.nan, np.inf]), np.array([2**40, -(2**40)]), np.array("{")]
    ),
)


def test_odd_arrays_in_an_npz(tmp_path):
    names = ["edge_index", "y", "x", "meta", "edge_time", "edge_weight", "train_mask", "x_data", "x_indices"]
    names += ["x_indptr", "x_shape", "edge_", "edge_index/", "val_mask", "test_mask", "node_name"]

    @few
    @given(st.dictionaries(st.sampled_from(names), ODD_ARRAYS, min_size=1, max_size=6), st.booleans())
    def run(arrays, whole):
        base = {"edge_index": np.array([[0, 1], [1, 0]]), "y": np.array([0, 1])} if whole else {}
        with open(tmp_path / "odd.npz", "wb") as file:
            np.savez(file, **{**base, **arrays})
        for read in (data.load_npz, data.read_names):
            only_documented(partial(read, tmp_path / "odd.npz"))

    run()


def test_odd_edge_lists(tmp_path):
    cell = st.one_of(
        st.sampled_from(
            ["src", "dst", "weight", "time", "1", "0", "-1", "007", "1e9", "nan", '"', "'", "#", "%", ""]
        ),
        st.text(st.characters(codec="utf-8"), max_size=4),
        st.integers(-(2**70), 2**70).map(str),
    )
    line = st.lists(cell, max_size=5).flatmap(
        lambda x: st.sampled_from([",", "\t", ";", " ", "  "]).map(lambda d: d.join(x))
    )
    text = st.lists(line, max_size=8).map("\n".join).map(str.encode)
    file = st.one_of(text, damaged(b"src,dst,weight\nann,bob,1.5\nbob,cy,2\n"), st.binary(max_size=60))

    @settings(few, max_examples=200)
    @given(
        file,
        st.sampled_from(["edges.csv", "edges.txt", "edges.csv.gz"]),
        st.sampled_from([None, 3, 0]),
        st.sampled_from([None, ",", "", "ab", "\n"]),
        st.sampled_from([None, True, False]),
    )
    def run(content, name, num_nodes, delimiter, header):
        (tmp_path / name).write_bytes(content)
        only_documented(
            lambda: data.read_edge_list(
                tmp_path / name, num_nodes=num_nodes, delimiter=delimiter, header=header
            )
        )

    run()


ODD_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", ["directory", "shards"])
def test_odd_metadata(kind, tmp_path):
    """Any value at any place of `meta.json`, which nothing guards but the reader."""
    good = written(kind, tmp_path)
    file = good / "meta.json"
    before = json.loads(file.read_text())

    @few
    @given(st.data())
    def run(values):
        meta = json.loads(json.dumps(before))
        at = meta
        while isinstance(at, dict) and at:
            key = values.draw(st.sampled_from(sorted(at)))
            if not isinstance(at[key], dict) or values.draw(st.booleans()):
                at[key] = values.draw(ODD_JSON)
                break
            at = at[key]
        file.write_text(json.dumps(meta))
        only_documented(lambda: READERS[kind](good))

    run()


def test_odd_artefacts(tmp_path):
    names = ["meta.json", "params.npz", "embed-2.exported"]

    @few
    @given(
        st.dictionaries(
            st.sampled_from(names),
            st.one_of(st.binary(max_size=80), ODD_JSON.map(lambda x: json.dumps(x).encode())),
            max_size=3,
        )
    )
    def run(files):
        shutil.rmtree(tmp_path / "artefact", ignore_errors=True)
        (tmp_path / "artefact").mkdir()
        for name, content in files.items():
            (tmp_path / "artefact" / name).write_bytes(content)
        only_documented(lambda: runtime.load(tmp_path / "artefact"))

    run()


PROGRAMS = ["classify", "inductive", "shard", "links.__main__", "pod.__main__", "recommend.__main__"]
PROGRAMS += ["serve.command", "unsupervised.__main__", "events.__main__"]
VALUES = [
    "",
    "0",
    "1",
    "-1",
    "nan",
    "inf",
    "1e99",
    "x",
    "25,10",
    "25,,10",
    "--",
    "max",
    "missing.npz",
    "/",
    "é",
    "None",
]
OPTIONS = [
    "dataset",
    "fanouts",
    "epochs",
    "batch-size",
    "hidden",
    "layers",
    "lr",
    "dropout",
    "seed",
    "runs",
    "out",
    "resume",
    "json",
    "scale",
    "conv",
    "aggregator",
    "labels",
    "shards",
    "path",
    "edges",
    "num-nodes",
    "help-me",
    "port",
    "negatives",
    "draw",
    "objective",
    "processes",
    "capacity",
    "patience",
    "threads",
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_odd_command_lines(program, tmp_path, capsys, monkeypatch):
    """Options that are wrong, or right beside data that is no data: status 2 and a line that says why."""
    module = import_module(f"experiments.{program}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.npz").write_bytes(b"PK no zip")
    arguments = st.lists(
        st.tuples(st.sampled_from(OPTIONS), st.sampled_from(VALUES)).map(
            lambda pair: [f"--{pair[0]}", pair[1]]
        ),
        max_size=4,
    )

    @few
    @given(arguments, st.sampled_from(["broken.npz", "missing.npz", ".", ""]))
    def run(pairs, dataset):
        given = [part for pair in pairs for part in pair] + ["--dataset", dataset]
        try:
            status = module.run(given)
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr().err
        assert status == 2, (given, status, said)
        assert "Traceback" not in said, given
        lines = [line for line in said.strip().split("\n") if not line.startswith(("usage:", " "))]
        assert len(lines) == 1, (given, said)

    run()
