"""The benchmarks of features on the host and of the first step, on a tiny graph."""

import json

import pytest

from benchmarks import common, first_step, host, make_graph
from jsage import data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "tiny"
    data.save(path, make_graph.make(make_graph.Size(300, 3_000, 8, 4, 2.4, 100, 50)))
    return path


SIZES = ["--batch-size=16", "--fanouts=4,3", "--hidden=8"]


class TestHost:
    @pytest.mark.slow
    def test_every_form_is_timed_and_they_train_alike(self, folder, tmp_path, monkeypatch):
        losses = {}

        def turns(calls, repetitions):
            losses.update({name: float(call()["loss"]) for name, call in calls.items()})
            return {name: [2.0 if name.startswith("device") else 3.0] for name in calls}

        names = ("device trees", "host trees", "device compacted", "host compacted, few pages")
        monkeypatch.setattr(host, "FORMS", {name: host.FORMS[name] for name in names})
        monkeypatch.setattr(host, "alternate", turns)
        arguments = [f"--graph={folder}", f"--json={tmp_path}/out.json", "--steps=2", "--time-only", *SIZES]
        assert common.run(host.options(), host.main, arguments) == 0
        rows = {row["form"]: row for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
        assert list(rows) == list(host.FORMS)
        assert rows["host trees"]["ratio_to_device"] == 1.5
        assert rows["host trees"]["seconds_min"] == 1.5
        assert losses["host trees"] == pytest.approx(losses["device trees"], rel=1e-6)
        assert losses[names[3]] == pytest.approx(losses["device compacted"], rel=1e-6)
        next_losses = [rows[name]["loss_of_next_epoch"] for name in names]
        assert next_losses[0] == pytest.approx(next_losses[1], rel=1e-5)
        assert next_losses[2] == pytest.approx(next_losses[3], rel=1e-5)

    @pytest.mark.slow
    def test_memory(self, folder):
        options = host.options().parse_args([f"--graph={folder}", "--steps=2", *SIZES])
        found = host.memory("host trees", options)
        assert found["features_bytes"] == 300 * 8 * 4
        assert found["private_growth_bytes"] > 0
        assert 0 < found["mapped_features_bytes"] < 2**16


class TestFirstStep:
    @pytest.mark.slow
    def test_parts_add_up(self, folder, tmp_path):
        options = first_step.options().parse_args([f"--graph={folder}", "--steps=2", *SIZES])
        found = first_step.measure(options)
        total = found.pop("first_step_seconds")
        assert sum(found.values()) == pytest.approx(total)
        assert all(seconds > 0 for seconds in found.values())

    @pytest.mark.slow
    def test_processes_take_turns(self, folder, monkeypatch):
        asked = []

        def fresh(options, steps, more):
            asked.append(more)
            return {"first_step_seconds": float(len(asked)), "run_seconds": 1.0}

        monkeypatch.setattr(first_step, "fresh", fresh)
        options = first_step.options().parse_args([f"--graph={folder}", "--repetitions=2", *SIZES])
        rows = {row["cache"]: row for row in first_step.rounds(options, 16)}
        assert list(rows) == ["uncached", "cold", "warm"]
        assert rows["warm"]["first_step_seconds"] == 4.5
        assert rows["cold"]["first_step_seconds_min"] == 2.0
        assert asked[0] == asked[3] == []
        assert asked[1] == asked[2] != asked[4] == asked[5]
