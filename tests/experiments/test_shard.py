"""The command that cuts a graph into shards, and its benchmark, on small graphs."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import shard as benchmark
from experiments import shard
from jsage.data import open_shard, open_shards, verify_shards
from jsage.graph import balanced, contiguous, hashed

RANDOM = np.random.default_rng(0)
EDGES = RANDOM.integers(0, 60, (300, 2), np.int32)
DST = np.concatenate([EDGES[:, 1], EDGES[EDGES[:, 0] != EDGES[:, 1], 0]])
PLACED = {
    "contiguous": contiguous(60, 4),
    "hashed": hashed(60, 4),
    "balanced": balanced(np.bincount(DST, minlength=60), 4),
}


@pytest.fixture
def given(tmp_path):
    (tmp_path / "edges").mkdir()
    for number, part in enumerate(np.split(EDGES, [100, 101])):
        np.save(tmp_path / "edges" / f"{number}.npy", part)
    np.save(tmp_path / "features.npy", np.arange(120, dtype=np.float32).reshape(60, 2))
    np.save(tmp_path / "train.npy", np.arange(5))
    arguments = {
        "edges": "edges",
        "features": "features.npy",
        "train": "train.npy",
        "out": "out",
        "json": "r.json",
    }
    paths = [f"--{name}={tmp_path / file}" for name, file in arguments.items()]
    return tmp_path, [*paths, "--num-nodes=60", "--shards=4", "--memory=2e8"]


@pytest.mark.parametrize("placement", PLACED)
def test_the_command_writes_shards(given, placement, capsys):
    folder, arguments = given
    assert shard.run([*arguments, f"--placement={placement}", "--symmetrize"]) == 0
    verify_shards(folder / "out")
    made = open_shards(folder / "out")
    assert made.placement == PLACED[placement]
    found = json.loads((folder / "r.json").read_text())
    assert (found["num_edges"], found["num_nodes"]) == (len(DST), 60)
    assert found["edges"] == list(made.edges) == np.bincount(made.placement.owner(DST), minlength=4).tolist()
    for number in range(4):
        opened = open_shard(folder / "out", number)
        np.testing.assert_array_equal(opened.features[:, 0], 2 * made.placement.globals(number))
    assert "out: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--num-nodes=59"], "must be node ids in 0 .. 58, got 59"),
        (["--edges=nowhere"], "nowhere has no .npy or .parquet files"),
        (["--features=nowhere.npy"], "No such file"),
        (["--memory=10"], "memory_bytes must be at least 134217728, got 10"),
    ],
)
def test_bad_input_is_one_line(given, more, message, capsys):
    _, arguments = given
    if more == ["--num-nodes=59"]:
        arguments = [argument for argument in arguments if "features" not in argument]
    assert shard.run([*arguments, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_must_be_given(capsys):
    assert shard.run([]) == 2
    assert "--edges, --num-nodes and --out must be given" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        shard.run(["--placement=random"])
    assert "invalid choice: 'random'" in capsys.readouterr().err


def test_an_existing_directory_is_kept(given, capsys):
    folder, arguments = given
    assert shard.run(arguments) == 0
    before = (folder / "out" / "meta.json").read_bytes()
    assert shard.run(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert (folder / "out" / "meta.json").read_bytes() == before


@pytest.mark.slow
def test_the_benchmark_kills_and_compares(tmp_path, monkeypatch, capsys):
    def measured(options, folder, placement, name):
        given = {"target": folder / name, "folder": folder / "edges", "placements": [placement]}
        benchmark.write(argparse.Namespace(**{**vars(options), **given}))
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.setattr(benchmark, "measured", measured)
    monkeypatch.setattr(benchmark, "KILLS", ("write",))
    arguments = ["--num-edges=2e3", "--num-nodes=100", "--shards=3", "--memory=2e8", "--placements=hashed"]
    options = benchmark.options().parse_args([*arguments, f"--folder={tmp_path}"])
    whole, killed = benchmark.shaped(options)
    assert whole["peak_rss_bytes"] > 10**7
    assert killed["same_checksums"]
    assert killed["kills"] == 1
    assert killed["killed_at"][0]["stage"] == "write"
    assert list(tmp_path.iterdir()) == []
