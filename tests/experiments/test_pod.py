"""The job on a mesh, run as its users run it: eight virtual devices and tiny graphs."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from test_experiments import KEYS, read_lines, write_npz

from experiments.common.config import Config as ClassifyConfig
from experiments.common.config import SupervisedOptions
from experiments.common.mesh import padded
from experiments.pod import __main__ as pod
from experiments.pod.config import Config
from experiments.pod.tables import locate, open_source
from jsage.data import load_npz, shard_dataset
from jsage.graph import hashed
from jsage.parallel import make_mesh
from jsage.train import checkpoint

MORE = {"devices", "processes", "capacities", "bytes"}
RECIPE = ("--hidden", "8", "--lr", "0.1", "--weight-decay", "0", "--dropout", "0", "--fanouts", "4,3")
SMALL = (*RECIPE, "--devices", "8", "--batch-size", "20", "--epochs", "6")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same graph as a file, and in eight shards."""
    folder = tmp_path_factory.mktemp("pod")
    dataset = load_npz(write_npz(folder, "classes", features=True))
    shard_dataset(folder / "sharded", dataset, hashed(dataset.graph.num_nodes, 8))
    return folder


def job(folder, dataset, *options):
    """The status and the JSON."""
    target = folder / "result.json"
    target.unlink(missing_ok=True)
    status = pod.run(["--dataset", str(folder / dataset), *SMALL, "--json", str(target), *options])
    return status, json.loads(target.read_text()) if target.exists() else None


@pytest.fixture(scope="module")
def whole(folder):
    """An uninterrupted run on the file, with everything that it writes."""
    status, result = job(
        folder, "classes.npz", "--out", str(folder / "whole"), "--save-every", "2", "--dropout", "0.2"
    )
    assert status == 0
    return result


@pytest.mark.slow
def test_two_epochs_end_with_a_score(folder):
    status, result = job(folder, "classes.npz", "--epochs", "2")
    assert status == 0
    assert result.keys() == KEYS | MORE
    assert (result["devices"], result["traces"], result["epochs"]) == (8, 1, [2])


@pytest.mark.slow
def test_the_json_is_that_of_classify_and_says_what_lay_where(whole):
    assert whole.keys() == KEYS | MORE
    assert (whole["devices"], whole["processes"], whole["traces"]) == (8, 1, 1)
    assert (whole["metric"], whole["epochs"], len(whole["capacities"])) == ("accuracy", [6], 3)
    assert whole["config"].keys() == {field.name for field in dataclasses.fields(Config)}
    assert {"graph", "features", "exchange", "weights"} <= whole["bytes"].keys()
    assert whole["test_mean"] > whole["baselines"]["majority class"] + 0.2


def test_the_recipe_is_that_of_classify():
    mine, theirs = Config(dataset="digits"), ClassifyConfig()
    names = [field.name for field in dataclasses.fields(SupervisedOptions)]
    assert {"hidden", "dropout", "smoothing", "lr", "patience"} <= set(names)
    assert [getattr(mine, name) for name in names] == [getattr(theirs, name) for name in names]


@pytest.mark.slow
def test_a_run_cut_off_goes_on_bit_for_bit(folder, whole):
    out = folder / "cut"
    options = "--out", str(out), "--save-every", "2", "--dropout", "0.2"
    assert job(folder, "classes.npz", *options, "--epochs", "4")[0] == 0
    assert job(folder, "classes.npz", *options)[0] == 2, "a run is there already"
    status, result = job(folder, "classes.npz", *options, "--resume")
    assert (status, result["epochs"], result["test_mean"]) == (0, [6], whole["test_mean"])
    assert read_lines(out / "graphsage-0") == read_lines(folder / "whole" / "graphsage-0")
    assert checkpoint.latest_step(out / "graphsage-0" / "checkpoints") == 6


@pytest.mark.slow
def test_shards_and_copies_give_the_numbers_of_the_file(folder, whole):
    options = "--out", str(folder / "shards"), "--dropout", "0.2", "--epochs", "2", "--cache", "9"
    assert job(folder, "sharded", *options)[0] == 0
    expected, found = (read_lines(folder / name / "graphsage-0") for name in ("whole", "shards"))
    assert len(found) == 2
    for a, b in zip(expected, found, strict=False):
        assert b == pytest.approx(a, rel=1e-4)


def test_a_dry_run_places_nothing(folder, capsys, monkeypatch):
    monkeypatch.setattr(pod, "make_mesh", None)
    for dataset in ("classes.npz", "sharded"):
        status, result = job(folder, dataset, "--dry-run", "--cache", "5")
        assert status == 0
        assert result["bytes"]["cache"] > 0
        text = capsys.readouterr().out
        assert "60 nodes and" in text
        assert re.search(rf"together .* {sum(result['bytes'].values()):,} ", text)


def test_the_bill_is_what_the_tables_take(folder):
    config = pod.parse(["--dataset", str(folder / "sharded"), *SMALL])
    source = open_source(config, 8)
    items, tables = pod.memory_of_each_device(source, config), pod.make_tables(source, config, make_mesh())
    weight = tables.graph.edge_data["weight"]
    assert items["weights"] == weight.nbytes / 8
    assert items["features"] == tables.features.rows.nbytes / 8
    assert items["graph"] == sum(x.nbytes for x in jax.tree.leaves(tables.graph._replace(edge_data={}))) / 8


BAD = {
    "argument --placement": ("--placement", "random"),
    "ValueError: --process is a number below --processes 2, got 2": ("--process", "2", "--processes", "2"),
    "ValueError: --processes 2 need the --coordinator": ("--processes", "2"),
    "ValueError: --devices 8 must be a multiple of": ("--processes", "3", "--coordinator", "localhost:1"),
    "ValueError: training needs .* GB of each device, but it has 0.000 GB: take more": (
        "--memory",
        "0.000001",
    ),
    "FileNotFoundError: --dataset nowhere": ("--dataset", "nowhere"),
    "ValueError: --dataset digits is trained on a part": ("--dataset", "digits"),
    "ValueError: a mesh of 8 devices takes as many shards, got a placement over 4": ("--dataset", "four"),
    "ValueError: --dataset .* has no features": ("--dataset", "bare"),
    "ValueError: --devices 16, but jax has 8": ("--devices", "16"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_options_get_one_line_and_exit_2(folder, capsys, message):
    options = list(BAD[message])
    dataset = load_npz(folder / "classes.npz")
    if "four" in options:
        shard_dataset(folder / "four", dataset, hashed(60, 4))
    if "bare" in options:
        shard_dataset(folder / "bare", dataset._replace(features=None), hashed(60, 8))
    paths = {name: str(folder / name) for name in ("four", "bare")}
    try:
        status = job(folder, "classes.npz", *(paths.get(word, word) for word in options))[0]
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert re.search(message, error.strip().splitlines()[-1])
    assert message.startswith("argument") or error.count("\n") == 1


def test_batches_are_padded_with_dead_seeds():
    seeds, mask = padded(np.arange(6).reshape(2, 3), np.ones((2, 3), bool), 4)
    assert seeds.tolist() == [[0, 1, 2, 2], [3, 4, 5, 5]]
    assert mask.tolist() == [[True] * 3 + [False]] * 2


def test_nodes_of_splits_come_in_the_order_of_their_ids_from_everywhere(folder):
    config = pod.parse(["--dataset", str(folder / "classes.npz"), *SMALL])
    mine = locate(open_source(config, 8), make_mesh())
    config = pod.parse(["--dataset", str(folder / "sharded"), *SMALL])
    theirs = locate(open_source(config, 8), make_mesh())
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
