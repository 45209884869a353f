"""The benchmarks on tiny graphs: that they run, say what they should, and measure what they say."""

import json
import os
import sys
import time
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import common, make_graph, sample, step, temporal
from benchmarks.peers import compare, jsage_step, process
from jsage import data

TINY = make_graph.Size(300, 3_000, 8, 4, 2.4, 100, 50)


@pytest.fixture(scope="module")
def dataset():
    return make_graph.make(TINY)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "tiny"
    data.save(path, dataset)
    return path


def test_sampling_as_of_a_time_is_measured_beside_the_sampler_without_times(folder, tmp_path):
    """No way takes memory of the graph's size."""
    options, rows = temporal.options(), []
    arguments = ["--graph", str(folder), "--batch-size", "8", "--repetitions", "1", "--json"]
    assert common.run(options, temporal.main, [*arguments, str(tmp_path / "found.json")]) == 0
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["way"] for row in rows] == [temporal.STATIC, *temporal.WAYS]
    assert rows[0]["ratio_to_no_times"] == 1
    assert all(row["seconds_min"] > 0 for row in rows)


class TestMakeGraph:
    def test_has_the_sizes_that_were_asked_for(self, dataset):
        graph = dataset.graph
        assert graph.num_nodes == 300
        assert 2_000 < graph.num_edges <= 3_000
        assert dataset.features.shape == (300, 8)
        assert [len(split) for split in (dataset.train, dataset.val, dataset.test)] == [100, 50, 150]
        data.validate_dataset(dataset)

    def test_degrees_are_heavy_tailed(self, dataset):
        degrees = np.diff(np.asarray(dataset.graph.indptr))
        assert degrees.max() > 5 * np.median(degrees)

    def test_the_seed_decides(self, dataset):
        same, other = make_graph.make(TINY), make_graph.make(TINY, seed=1)
        assert np.array_equal(same.graph.indices, dataset.graph.indices)
        assert np.array_equal(same.train, dataset.train)
        assert not np.array_equal(other.train, dataset.train)

    def test_the_command_writes_a_directory_once(self, tmp_path, capsys):
        assert make_graph.main(["tiny", str(tmp_path / "tiny")]) == 0
        written = data.open(tmp_path / "tiny")
        assert written.features.shape == (make_graph.SIZES["tiny"].num_nodes, 16)
        assert make_graph.main(["tiny", str(tmp_path / "tiny")]) == 2
        assert "exists already" in capsys.readouterr().err


class TestReport:
    def run(self, folder, tmp_path, main):
        options = common.parser("something", "What it does.")
        arguments = ["--graph", f"{folder}/", f"--json={tmp_path}/out.json"]
        return common.run(options, main, arguments)

    def test_one_object_with_what_was_measured_where_and_how(self, folder, tmp_path):
        assert self.run(folder, tmp_path, lambda options: [{"seconds_min": 1.0}]) == 0
        found = json.loads((tmp_path / "out.json").read_text())
        assert list(found) == ["benchmark", "graph", "command", "machine", "versions", "rows"]
        assert found["benchmark"] == "something"
        assert found["graph"] == "tiny"
        assert found["rows"] == [{"seconds_min": 1.0}]
        assert found["machine"]["memory_bytes"] > 2**28
        assert found["versions"]["jax"] == jax.__version__

    def test_the_command_names_no_folder_of_this_machine(self, folder, tmp_path):
        self.run(folder, tmp_path, lambda options: [])
        command = json.loads((tmp_path / "out.json").read_text())["command"]
        assert command == "python -m benchmarks.something --graph tiny --json=out.json"

    def test_a_missing_graph_is_one_line_and_2(self, tmp_path, capsys):
        assert self.run(tmp_path / "no", tmp_path, lambda options: data.open(options.graph)) == 2
        assert capsys.readouterr().err.startswith("FileNotFoundError: ")
        assert not (tmp_path / "out.json").exists()


class TestTiming:
    def test_calls_take_turns_and_warm_ups_are_left_out(self):
        order = []
        calls = {name: lambda name=name: order.append(name) for name in "ab"}
        times = common.alternate(calls, repetitions=2, warmup=1)
        assert order == list("ababab")
        assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}

    def test_the_result_is_waited_for(self):
        class Slow:
            def block_until_ready(self):
                time.sleep(0.02)

        assert common.timed(Slow) >= 0.02

    def test_a_summary_is_a_step(self):
        assert common.summary([8.0, 4.0, 12.0], per=4) == {"seconds_min": 1.0, "seconds_median": 2.0}

    def test_peak_memory_rises_with_an_array_and_starts_anew(self):
        process.reset_peak_rss()
        before = common.peak_rss_bytes()
        np.ones(2**25, np.float64)
        risen = common.peak_rss_bytes()
        assert risen - before > 200e6
        common.reset_peak_rss()
        assert risen - common.peak_rss_bytes() > 200e6

    @pytest.mark.slow
    def test_peaks_of_the_machine_are_plausible(self):
        assert 1e8 < common.matmul_rate(256, 128, 64, repetitions=1) < 1e16
        assert 1e7 < common.gather_rate(jnp.ones((1000, 256)), repetitions=1) < 1e14
        assert 1e6 < common.random_rate(jax.random.key(0), repetitions=1) < 1e13


class TestWorkers:
    def answer(self, lines, tmp_path):
        """What `serve` answers to these lines, in a process of its own that also prints."""
        (tmp_path / "chatty.py").write_text(
            "from benchmarks.peers.process import serve\n"
            "def answer(request):\n"
            "    print('noise')\n"
            "    return {'half': request['number'] // request['by']}\n"
            "serve(answer)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        with process.Worker(sys.executable, "chatty", [], environment) as worker:
            return [worker.request(line) for line in lines]

    def test_answers_requests_and_reports_errors(self, tmp_path):
        good, bad, again = self.answer(
            [{"number": 8, "by": 2}, {"number": 8, "by": 0}, {"number": 9, "by": 3}], tmp_path
        )
        assert (good, again) == ({"half": 4}, {"half": 3})
        assert bad["error"].startswith("ZeroDivisionError")

    def test_a_worker_that_is_gone_is_an_error(self):
        with (
            process.Worker(sys.executable, "benchmarks.no_such_module", [], os.environ) as worker,
            pytest.raises(RuntimeError, match=r"no_such_module ended with status 1"),
        ):
            worker.request({})


class TestSample:
    def test_rows_name_every_way(self, dataset, monkeypatch):
        monkeypatch.setattr(sample, "keys", lambda: {"threefry2x32": jax.random.key(0)})
        seeds = jnp.asarray(dataset.train)[:32].reshape(4, 8)
        rows = sample.measure(dataset.graph, seeds, (3,), repetitions=1)
        ways = {(row["sampler"], row["draw"], row["key"], row["calls"]) for row in rows}
        assert len(rows) == len(ways) == 2 * len(sample.DRAWS) + 1
        for row in rows:
            assert row["batch_size"] == 8
            assert 0 < row["seconds_min"] <= row["seconds_median"]
            assert row["seeds_per_second"] == pytest.approx(8 / row["seconds_min"])

    def test_a_scan_depends_on_every_batch(self, dataset):
        seeds = jnp.asarray(dataset.train)[:16].reshape(2, 8)
        draw = sample.DRAWS["without_replacement"]
        one, many = (
            jax.jit(partial(call, fanouts=(3, 2), draw=draw)) for call in (sample.sample, sample.scan)
        )
        key = jax.random.key(0)
        each = [one(key, 6 + i, dataset.graph, seeds[i]) for i in range(2)]
        assert int(many(key, 3, dataset.graph, seeds)) == sum(
            int(leaf.sum()) for leaf in jax.tree.leaves(each)
        )

    def test_numpy_draws_in_neighbors(self):
        indptr, indices = np.array([0, 2, 2, 3]), np.array([1, 2, 0])
        seeds = np.array([0, 1, 2] * 20)
        (src, mask), (src2, _) = sample.numpy_blocks(np.random.default_rng(0), indptr, indices, seeds, (4, 2))
        allowed = {0: {1, 2}, 1: {1}, 2: {0}}
        assert all(set(row) <= allowed[seed] for seed, row in zip(seeds, src, strict=True))
        assert set(src[seeds == 0].ravel()) == {1, 2}
        assert np.array_equal(mask.all(1), seeds != 1)
        assert src2.shape == (60 * 5, 2)


class TestStep:
    def test_needs_features(self, dataset):
        with pytest.raises(ValueError, match="needs features and labels"):
            step.place(dataset._replace(features=None))


class FakeSide:
    """Answers as a worker does: each form takes as long as it is told."""

    def __init__(self, seconds):
        self.seconds, self.asked = seconds, []

    def request(self, request):
        self.asked.append(request)
        seconds = self.seconds[request["form"]]
        if seconds is None:
            return {"error": "MemoryError: too large"}
        return {"seconds": seconds, "loss": 1.0, "peak_rss_bytes": 10}


class TestPeers:
    OPTIONS = SimpleNamespace(batch_size=8, hidden=16, steps=4, rounds=3)

    def rows(self, ours, theirs, lacking):
        hello = {"sampler": "s", "versions": {"torch": "2"}}
        sides = {
            "jsage": (FakeSide(ours), {**hello, "forms": dict.fromkeys(ours)}),
            "pyg": (FakeSide(theirs), {**hello, "forms": lacking}),
        }
        found = compare.measure(sides, (3, 2), self.OPTIONS)
        return {(row["side"], row["form"]): row for row in found}, sides

    def test_ratios_and_what_could_not_be_run(self):
        lacking = {"default": None, "large": None, "trimmed": "needs pyg-lib"}
        rows, sides = self.rows({"scan": 2.0}, {"default": 8.0, "large": None, "trimmed": 1.0}, lacking)
        assert rows["jsage", "scan"]["seconds_min"] == 0.5
        assert rows["pyg", "default"]["ratios_to_jsage"] == [4.0] * 3
        assert rows["pyg", "default"]["versions"] == {"torch": "2"}
        assert rows["pyg", "trimmed"]["not_run"] == "needs pyg-lib"
        assert rows["pyg", "large"]["not_run"] == "MemoryError: too large"
        asked = [request["form"] for request in sides["pyg"][0].asked]
        assert asked == ["default", "large", "default", "default", "default"]

    def test_our_own_failure_is_no_row(self):
        with pytest.raises(RuntimeError, match="our own step failed: MemoryError"):
            self.rows({"scan": None}, {}, {})

    @pytest.mark.slow
    def test_our_forms_train_alike_and_learn(self, folder):
        trainer = jsage_step.Trainer(folder)
        request = {"fanouts": [4, 3], "batch_size": 25, "hidden": 16, "steps": 3}
        scan, calls = (
            [trainer({"form": form, **request})["loss"] for _ in range(rounds)]
            for form, rounds in (("scan", 25), ("calls", 3))
        )
        assert scan[:3] == pytest.approx(calls, rel=1e-4)
        assert scan[-1] < 0.6 * scan[0]
        trees = [trainer({"form": "trees", **request})["loss"] for _ in range(25)]
        assert trees[:3] == pytest.approx(scan[:3], rel=0.15)
        assert trees[-1] < 0.6 * trees[0]

    @pytest.mark.slow
    def test_beside_pyg(self, folder, tmp_path):
        python = os.environ.get("JSAGE_PEER_PYTHON")
        if not python:
            pytest.skip("no peer: set JSAGE_PEER_PYTHON to an interpreter with torch and torch_geometric")
        sizes = ["--batch-size", "16", "--hidden", "8", "--steps", "2", "--rounds", "1"]
        options = ["--fanouts", "4,3", "--allocators", "raised", *sizes]
        target = tmp_path / "peers.json"
        arguments = ["--graph", str(folder), "--json", str(target), "--peer-python", python, *options]
        assert common.run(compare.options(), compare.main, arguments) == 0
        rows = json.loads(target.read_text())["rows"]
        assert {row["form"] for row in rows} == {
            "scan",
            "trees",
            "calls",
            "default",
            "trimmed",
            "bipartite",
            "bipartite_csr",
        }
        assert all("not_run" in row or row["ratio_to_jsage"] > 0 for row in rows)
