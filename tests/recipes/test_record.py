"""What a run leaves in its folder, and with what it goes on."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jsage.recipes.loop import Run, StoppingPolicy, rank_by_score, train_until_stopped
from jsage.recipes.options import RunOptions, option
from jsage.recipes.record import Record
from jsage.train import checkpoint, init_state

DATA = {"features": np.arange(6, dtype=np.float32).reshape(3, 2), "labels": np.arange(3)}


@dataclasses.dataclass(frozen=True)
class Options(RunOptions):
    """Of a run that learns nothing."""

    dropout: float = option(0.5, "rate")
    fanouts: tuple[int, ...] = option((10, 10), "neighbors")


def options(folder: Path, **more: Any) -> Options:
    return Options(**{"out": str(folder), "save_every": 2, "resume": True, **more})


def train(given: Options, epochs: int, data: Any = DATA, scores: Any = lambda number: 1 / number) -> Run:
    """Parameters count the epochs."""
    state = init_state(jax.random.key(0), {"w": np.float32(0)}, optax.sgd(0.1))

    def advance(state, number):
        params = {"w": jax.device_put(np.float32(number))}
        return state._replace(params=params, step=state.step + 1), {"loss": 1.0, "weight": 1.0}

    def validate(state):
        return {"val_score": scores(int(state.params["w"]))}

    policy = StoppingPolicy(epochs, 99, rank_by_score("val_score"))
    with Record("Model", 0, given, 10, data) as record:
        return train_until_stopped(state, advance, validate, policy, record)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Four epochs of a run, in its folder `model-0`."""
    train(options(tmp_path), 4)
    return tmp_path


@pytest.mark.parametrize(
    ("more", "data", "message"),
    [
        ({"dropout": 0.6}, DATA, r"resume: dropout was 0\.5, is 0\.6: give what the run in .*model-0"),
        ({"fanouts": (10, 9)}, DATA, r"resume: fanouts was \[10, 10\], is \[10, 9\]: "),
        ({"dropout": 0.6, "fanouts": (1,)}, DATA, r"dropout was 0\.5, is 0\.6; fanouts was .*, is \[1\]: "),
        (
            {},
            DATA | {"labels": np.array([0, 2, 1])},
            r"resume: data/labels was int64\[3\] \w+, is int64",
        ),
        (
            {},
            DATA | {"features": np.zeros((3, 3))},
            r"data/features was float32\[3,2\] .*, is float64",
        ),
        ({}, {"labels": DATA["labels"]}, r"resume: data/features was float32.* is None: "),
        ({"dataset": "other"}, None, r"resume: data/features was .*; dataset was None, is other: "),
    ],
)
def test_a_run_goes_on_with_the_same_options_and_data_alone(out, more, data, message):
    with pytest.raises(ValueError, match=message):
        train(options(out, **more), 6, data)


def test_what_may_be_another(out, tmp_path):
    more = {"epochs": 9, "patience": 3, "runs": 2, "save_every": 1, "dataset": "the same, by another name"}
    assert set(more) - {"dataset"} == RunOptions.FREE - {"out", "resume"}
    shutil.copytree(out / "model-0", tmp_path / "moved" / "model-0")
    run = train(options(tmp_path / "moved", **more), 6)
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4, 5, 6]
    assert float(run.params["w"]) == 1
    assert checkpoint.latest_step(tmp_path / "moved" / "model-0" / "checkpoints") == 6


@pytest.mark.parametrize("damage", ["cut", "half a line", "another epoch", "gone", "text"])
def test_damaged_metrics_beside_a_whole_checkpoint_are_refused(out, damage):
    file = out / "model-0" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(
        {
            "cut": "".join(lines[:2]),
            "half a line": "".join(lines)[:-30],
            "another epoch": "".join([*lines[1:], lines[0]]),
            "gone": "",
            "text": "[]\n" * 4,
        }[damage]
    )
    if damage == "gone":
        file.unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged: expected the epochs 1 \.\. 4 of"):
        train(options(out), 6)
    file.write_text("".join(lines))
    assert len(train(options(out), 6).history) == 6


@pytest.mark.parametrize("change", [None, lambda text: text[:-5], lambda text: text.replace("0.5", "0.6")])
def test_without_knowing_what_the_run_was_it_does_not_go_on(out, change):
    file = out / "model-0" / "run.json"
    text = file.read_text()
    file.unlink()
    if change:
        file.write_text(change(text))
    with pytest.raises(ValueError, match=r"run\.json is missing or damaged, so it is not known what"):
        train(options(out), 6)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path):
    train(options(tmp_path), 4)
    folder = tmp_path / "model-0"
    for step in (2, 4):
        (folder / "checkpoints" / str(step)).rename(tmp_path / str(step))
    assert len(train(options(tmp_path, dropout=0.1), 2).history) == 2
    assert json.loads((folder / "run.json").read_text())["dropout"] == 0.1


def test_a_second_run_at_once_is_refused(tmp_path):
    def second(number):
        with pytest.raises(BlockingIOError, match="model-0 is being written already, by "):
            train(options(tmp_path), 4)
        return 0.5

    train(options(tmp_path), 2, scores=second)
    names = {path.name for path in (tmp_path / "model-0").iterdir()}
    assert names == {"run.json", "metrics.jsonl", "checkpoints"}


def test_a_score_that_is_nan_is_null_and_comes_back(tmp_path):
    values = {1: math.nan, 2: 0.5, 3: 0.25, 4: math.nan}
    train(options(tmp_path), 2, scores=values.get)
    run = train(options(tmp_path), 4, scores=values.get)
    np.testing.assert_array_equal([row["val_score"] for row in run.history], list(values.values()))
    assert run.best["epoch"] == 2
    text = (tmp_path / "model-0" / "metrics.jsonl").read_text()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [row["val_score"] for row in rows] == [None, 0.5, 0.25, None]


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(options(tmp_path, out=None), 2)
    assert list(tmp_path.iterdir()) == []
