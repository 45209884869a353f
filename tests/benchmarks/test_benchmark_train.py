"""The benchmarks `train` and `scaling` on tiny graphs, and the page that is made of what they write."""

import json
import time
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import common, make_graph, parts, plot, report, scaling, train
from benchmarks.step import make_step, place
from jsage import aggregate, data, sample_blocks
from jsage.nn import LSTM, Pool, SAGEConv
from jsage.sampling import fast_key

TINY = make_graph.Size(300, 3_000, 8, 4, 2.4, 100, 50)
FANOUTS, BATCH, HIDDEN = (4, 3), 25, 16
WIDTHS = (8, HIDDEN, 4)
KEY = fast_key(0)


@pytest.fixture(scope="module")
def dataset():
    return make_graph.make(TINY)


@pytest.fixture(scope="module")
def tables(dataset):
    return place(dataset)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("graphs") / "tiny"
    data.save(path, dataset)
    return path


def products(jaxpr, times=1) -> Counter:
    """How often each `[m, k] @ [k, n]` is computed, read from a program; loops count by their turns."""
    found = Counter()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (v.aval for v in equation.invars)
            (axes, _), (batch, _) = equation.params["dimension_numbers"]
            assert not batch
            k = int(np.prod([left.shape[axis] for axis in axes]))
            found[left.size // k, k, right.size // k] += times
        inner = times * equation.params.get("length", 1)
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else [value]:
                if (inside := getattr(part, "jaxpr", part)) is not part or hasattr(part, "eqns"):
                    found += products(inside, inner)
    return found


class TestWork:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "way", [aggregate.mean, aggregate.max, aggregate.gcn, Pool(reduce=aggregate.mean), LSTM()]
    )
    def test_flops_are_those_of_the_program(self, tables, way):
        step = make_step(FANOUTS, 4, hidden=HIDDEN, layers={"conv": partial(SAGEConv, aggregate=way)})
        seeds, mask = jnp.arange(BATCH), jnp.ones(BATCH, bool)
        blocks = sample_blocks(KEY, tables.graph, seeds, FANOUTS)
        state = jax.eval_shape(step.start, KEY, tables)
        program = jax.make_jaxpr(step.update)(state, tables, blocks, (seeds, mask))
        found = sum(2 * m * k * n * times for (m, k, n), times in products(program.jaxpr).items())
        expected = parts.Work(parts.matmuls([(125, 3), (25, 4)], WIDTHS, way), 0, 0).flops
        # Pool reads the destinations' own rows too; an LSTM's first state needs no product, but has one
        assert found == pytest.approx(expected, rel=0.35 if isinstance(way, Pool) else 0.02)
        if not isinstance(way, Pool | LSTM):
            assert found == expected

    def test_counts_each_product_once(self):
        found = parts.matmuls([(125, 3), (25, 4)], WIDTHS, aggregate.mean)
        first = {(125, 8, 16): 2, (8, 125, 16): 2}
        assert found == first | {(25, 16, 4): 2, (16, 25, 4): 2, (25, 4, 16): 2}

    def test_bytes_are_those_of_valid_slots_and_own_rows(self, tables):
        blocks = sample_blocks(KEY, tables.graph, jnp.arange(BATCH), FANOUTS)
        valid = int(blocks[0].mask.sum())
        assert 0 < valid < 125 * 3
        found = parts.work(blocks, tables.features, WIDTHS, aggregate.mean)
        assert found.gathered_bytes == (125 + valid) * 8 * 4
        assert found.random_words == 125 * 3 + 25 * 4
        twice = jax.tree.map(lambda x: jnp.stack([x, x]), blocks)
        assert parts.work(twice, tables.features, WIDTHS, aggregate.mean) == found


@pytest.fixture(scope="module", params=[None, (110,)], ids=["trees", "compacted"])
def made(request, tables):
    """A step, two batches, their blocks, and a state."""
    step = make_step(FANOUTS, 4, hidden=HIDDEN, capacities=request.param)
    seeds = jnp.arange(2 * BATCH).reshape(2, BATCH)
    blocks, fits = jax.jit(partial(parts.all_blocks, step))(KEY, tables, seeds)
    assert fits.all()
    assert blocks[0].mask.shape == (2, 125 if request.param is None else 110, 3)
    return step, seeds, blocks, jax.jit(step.start)(KEY, tables)


class TestParts:
    @pytest.mark.slow
    def test_sampling_makes_the_blocks_of_every_batch(self, tables, made):
        step, seeds, blocks, _ = made
        last, fits = jax.jit(partial(parts.sampling, step))(KEY, tables, seeds)
        assert fits
        for one, every in zip(jax.tree.leaves(last), jax.tree.leaves(blocks), strict=True):
            assert np.array_equal(one, every[-1])

    def test_gathering_reads_the_first_layers_rows_and_nothing_else(self, tables, made):
        step, _, blocks, state = made
        gather = jax.jit(partial(parts.gathering, step))
        found = gather(state.params, tables, blocks)
        table = np.asarray(tables.features, np.float64)
        block, *_ = last = jax.tree.map(lambda x: np.asarray(x[-1]), blocks)
        assert np.array_equal(found["own"], tables.features[block.dst])
        total = np.where(block.mask[..., None], table[block.src], 0).sum(1)
        np.testing.assert_allclose(found["sum"], total, rtol=1e-5, atol=1e-5)
        arguments = (gather, blocks), (jax.jit(step.apply), last)
        alone, whole = (
            call.lower(state.params, tables, read).compile().as_text() for call, read in arguments
        )
        assert " dot(" in whole
        assert " dot(" not in alone

    @pytest.mark.slow
    def test_compute_is_the_rest_of_the_step(self, tables, made):
        step, seeds, blocks, state = made
        one = jax.tree.map(lambda x: x[0], blocks)
        given = one, parts.read(step, state.params, tables, one)
        batches = (jnp.stack([seeds[0]] * 3), jnp.ones((3, BATCH), bool))
        blind = tables._replace(features=jnp.full_like(tables.features, jnp.nan))
        found = jax.jit(partial(parts.compute, step))(state, blind, given, batches)
        update, expected = jax.jit(step.update), state
        for batch in zip(*batches, strict=True):
            expected, _ = update(expected, tables, one, batch)
        assert int(found.step) == 3
        for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def run(module, folder, target, *more):
    arguments = ["--graph", str(folder), "--json", str(target), "--hidden", "8", "--repetitions", "1", *more]
    assert common.run(module.options(), module.main, arguments) == 0
    return json.loads(target.read_text())["rows"]


class TestTrain:
    @pytest.mark.slow
    def test_a_row_has_the_step_its_parts_and_its_floor(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(train, "matmul_rate", lambda m, k, n, dtype: 1e9)
        monkeypatch.setattr(train, "gather_rate", lambda table: 1e8)
        monkeypatch.setattr(train, "random_rate", lambda key: 1e7)
        cleared = []
        monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))  # keeps the suite's programs
        options = ["--fanouts=10,3", "--batch-size=100", "--steps=2", "--forms=compacted"]
        (row,) = run(train, folder, tmp_path / "train.json", *options)
        (capacity,) = row["capacities"]
        assert cleared == [True]
        assert 200 < capacity < 1100
        flops = 2 * (4 * capacity * 8 * 8 + 6 * 100 * 8 * 4)
        assert row["floor"]["flops"] == flops
        assert row["floor"]["matmul_seconds"] == pytest.approx(flops / 1e9)
        assert row["floor"]["random_seconds"] == pytest.approx((100 * 10 + capacity * 3) / 1e7)
        three = [row["floor"][f"{name}_seconds"] for name in ("matmul", "gather", "random")]
        assert row["floor_seconds"] == pytest.approx(sum(three))
        assert row["ratio_to_floor"] == pytest.approx(row["seconds_min"] / row["floor_seconds"])
        assert row["first_step_seconds"] > 10 * row["seconds_median"]
        assert row["fits"] == 1.0
        assert row["temp_bytes"] > 0
        assert all(0 < row[part]["seconds_min"] <= row[part]["seconds_median"] for part in train.PARTS)

    def test_a_floor_takes_the_faster_of_a_product_and_a_piece_of_it(self, tables, monkeypatch):
        rates = {(9000, 8, 16): 1e9, (4096, 8, 16): 2e9, (100, 8, 16): 3e9}
        monkeypatch.setattr(train, "matmul_rate", lambda m, k, n, dtype: rates[m, k, n])
        monkeypatch.setattr(train, "gather_rate", lambda table: 1e8)
        monkeypatch.setattr(train, "random_rate", lambda key: 1e7)
        work = parts.Work(Counter({(9000, 8, 16): 2, (100, 8, 16): 1}), 1e6, 10**5)
        floor = train.Rates(tables).floor(work)
        matmul = 2 * 9000 * 8 * 16 * 2 / 2e9 + 2 * 100 * 8 * 16 / 3e9
        assert floor["floor_seconds"] == pytest.approx(matmul + 0.01 + 0.01)


class TestScaling:
    def test_random_tables_are_a_graph(self):
        tables = scaling.random_tables(50, 4, 3)
        assert np.array_equal(np.diff(tables.graph.indptr), [4] * 50)
        assert set(np.asarray(tables.graph.indices)) <= set(range(50))
        assert tables.features.shape == (50, 3)

    def test_caches_explain_what_slower_reads_cost(self):
        same = {"row_reads": 1e6, "edge_reads": 1e4}
        small = same | {"seconds_min": 0.010, "row_reads_per_second": 1e9, "edge_reads_per_second": 1e7}
        large = same | {"seconds_min": 0.030, "row_reads_per_second": 1e8, "edge_reads_per_second": 5e6}
        first, last = scaling.explain([small, large])
        assert (first["ratio"], first["ratio_beyond_caches"]) == (1.0, 1.0)
        assert last["explained_seconds"] == pytest.approx(0.010 + 0.009 + 0.001)
        assert last["ratio_beyond_caches"] == pytest.approx(1.5)

    @pytest.mark.slow
    def test_every_kind_has_rows_and_the_page_shows_them(self, folder, tmp_path, monkeypatch):
        varied = {"fanouts": [(100, (10, 2))], "depth": [(25, (3,))]}
        monkeypatch.setattr(scaling, "VARIED", varied)
        monkeypatch.setattr(scaling, "BASE", (25, (3, 2)))
        monkeypatch.setattr(scaling, "STEPS", 2)
        monkeypatch.setattr(scaling, "random_reads", lambda table: (lambda: time.sleep(0.01), 1000))
        target = tmp_path / "scaling.json"
        rows = run(
            scaling,
            folder,
            target,
            "--nodes",
            "200",
            "400",
            "--num-features",
            "8",
            "--kinds",
            *varied,
            "nodes",
        )
        kinds = [(row["kind"], row["form"]) for row in rows]
        both = [("fanouts", "trees"), ("fanouts", "compacted")]
        assert kinds == [*both, ("depth", "trees"), ("nodes", "trees"), ("nodes", "trees")]
        small, large = rows[-2:]
        assert (small["num_nodes"], large["num_edges"]) == (200, 8000)
        assert small["temp_bytes"] == large["temp_bytes"] > 0
        assert 3e4 < large["row_reads_per_second"] <= 1e5
        assert plot.main([str(target), str(tmp_path / "scaling.svg")]) == 0
        assert "<svg" in (tmp_path / "scaling.svg").read_text()
        page = report.sections(tmp_path)
        assert page.startswith("### scaling, tiny\n")
        assert page.count("\n| nodes | ") == 2


class TestPage:
    ROWS = [{"fanouts": [3, 2], "a": 1.23456, "gone": None, "b": {"c": 1}}, {"fanouts": [1], "a": 2.0}]

    def write(self, tmp_path):
        document = common.report("python -m benchmarks.other", tmp_path, [], self.ROWS)
        (tmp_path / "other.json").write_text(json.dumps(document))

    def test_tables_go_between_the_marks(self, tmp_path):
        self.write(tmp_path)
        page = tmp_path / "page.md"
        page.write_text(f"before\n{report.START}\nold\n{report.END}\nafter\n")
        assert report.main([str(tmp_path), str(page)]) == 0
        text = page.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert "| fanouts | a |\n| --- | --- |\n| [3, 2] | 1.235 |\n| [1] | 2 |" in text

    def test_a_page_without_marks_is_left_alone(self, tmp_path, capsys):
        self.write(tmp_path)
        page = tmp_path / "page.md"
        page.write_text("no marks\n")
        assert report.main([str(tmp_path), str(page)]) == 2
        assert "must hold the lines" in capsys.readouterr().err
        assert page.read_text() == "no marks\n"

    def test_no_results_is_an_error(self, tmp_path, capsys):
        assert report.main([str(tmp_path)]) == 2
        assert "no .json files" in capsys.readouterr().err
