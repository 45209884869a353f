"""The benchmark `unsupervised` on a tiny graph: its pairs, its parts, its rows, and their table."""

import json
from functools import cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import ahead, common, hlo, make_graph, pairs, parts, report, train, unsupervised
from benchmarks.pairs import KINDS, Sizes, make_pair_step
from jsage import data
from jsage.graph import in_degrees
from jsage.sampling import LinkBatch, fast_key

TINY = make_graph.Size(300, 3_000, 8, 4, 2.4, 100, 50)
SIZES = Sizes((4, 3), seeds=62, hidden=16)
KEY = fast_key(0)


@pytest.fixture(scope="module")
def dataset():
    return make_graph.make(TINY)


@pytest.fixture(scope="module")
def tables(dataset):
    return pairs.place(dataset)


@pytest.fixture(scope="module")
def edges(tables):
    """`[300, 300]`: whether the graph has the edge from row to column."""
    graph, found = tables.graph, np.zeros((300, 300), bool)
    degrees = np.asarray(in_degrees(graph))
    found[np.asarray(graph.indices), np.repeat(np.arange(300), degrees)] = True
    return found


@pytest.fixture(scope="module")
def given(tables):
    """Three batches of edges, and numbers for three of walks."""
    return {"links": pairs.some_edges(tables.graph, SIZES.seeds, 3), "walks": jnp.arange(3)}


@pytest.fixture(scope="module")
def drawn(tables, given):
    """kind -> pairs, valid negatives and blocks of the three batches."""
    found = {}
    for kind in ("skip_gram", "links"):
        draw = jax.jit(partial(unsupervised.all_drawn, make_pair_step(kind, SIZES)))
        found[kind] = draw(KEY, tables, given.get(kind, given["walks"]))
    return found


@pytest.mark.slow
class TestPairs:
    def test_every_kind_embeds_as_many_nodes_or_two_fewer(self):
        count = {name: kind.count(SIZES.seeds) for name, kind in KINDS.items()}
        assert count == {"skip_gram": 21, "info_nce": 31, "links": 20, "links_kept": 20}
        for name, kind in KINDS.items():
            assert SIZES.seeds - 2 <= count[name] * kind.ends + kind.shared <= SIZES.seeds

    def test_edges_are_edges_of_the_whole_graph(self, given, edges):
        src, dst = np.asarray(given["links"]).reshape(-1, 2).T
        assert edges[src, dst].all()
        assert src.min() < 30
        assert src.max() > 200

    def test_walks_start_at_nodes_with_edges_and_lead_elsewhere(self, drawn, edges):
        (batch, valid), _ = drawn["skip_gram"]
        src, dst, mask = (np.asarray(part) for part in (batch.src, batch.dst, batch.mask))
        assert batch.negatives.shape == (3, 20)
        assert edges.any(0)[src].all()
        assert mask.mean() > 0.9
        step = edges.T.astype(np.int64)
        reach = np.any([np.linalg.matrix_power(step, t) > 0 for t in range(1, 6)], axis=0)
        assert (reach[src, dst] & (src != dst))[mask].all()
        assert np.array_equal(valid, src[:, :, None] != np.asarray(batch.negatives)[:, None])

    def test_no_negative_of_links_is_an_edge(self, drawn, edges):
        (batch, valid), _ = drawn["links"]
        assert batch.negatives.shape == (3, 20, 1)
        assert valid.mean() > 0.9
        rows = np.broadcast_to(np.asarray(batch.src)[..., None], valid.shape)
        assert not edges[rows, np.asarray(batch.negatives)][np.asarray(valid)].any()

    def test_links_are_in_no_neighborhood_of_their_step_unless_kept(self, drawn, edges):
        (batch, _), (first, *_) = drawn["links"]
        for i in range(3):
            src, dst, out = np.asarray(batch.src[i]), np.asarray(batch.dst[i]), np.zeros_like(edges)
            out[src, dst] = out[dst, src] = True
            rows = np.broadcast_to(np.asarray(first.dst[i])[:, None], first.src[i].shape)
            seen = np.asarray(first.src[i]), rows
            assert out[:, rows[:, 0]].any()
            assert edges[seen][np.asarray(first.mask[i])].all()
            assert not out[seen][np.asarray(first.mask[i])].any()
        assert KINDS["links_kept"] == KINDS["links"]._replace(exclude=False)

    def test_graphs_without_features_are_refused(self, dataset):
        with pytest.raises(ValueError, match="needs features"):
            pairs.place(dataset._replace(features=None))


@cache
def scanned_step(kind):
    """A kind of step, its compiled epoch, and its traces."""
    step, traces = make_pair_step(kind, SIZES), []

    def epoch(*arguments):
        traces.append(kind)
        return step.epoch(*arguments)

    return step, jax.jit(epoch), traces


@pytest.mark.slow
class TestStep:
    @pytest.mark.parametrize("kind", ["skip_gram", "info_nce", "links"])
    @pytest.mark.slow
    def test_a_scanned_epoch_learns(self, tables, given, kind):
        step, run, traces = scanned_step(kind)
        batches = given["links"] if kind == "links" else given["walks"]
        state, losses = jax.jit(step.start)(KEY, tables), []
        for _ in range(30):
            state, sums = run(state, tables, batches)
            losses.append(float(sums["loss"]) / float(sums["weight"]))
        assert int(state.step) == 90
        assert max(losses[-5:]) < min(losses[:2])
        assert traces == [kind]

    def test_the_parts_make_the_step(self, tables, given):
        step, run, _ = scanned_step("links")
        state = expected = jax.jit(step.start)(KEY, tables)
        found, _ = run(state, tables, given["links"])
        blind = tables._replace(features=jnp.full_like(tables.features, jnp.nan))

        def by_parts(state, tables, blind, batch):
            keys = jax.random.split(jax.random.fold_in(state.key, state.step), 4)
            src, dst, mask = step.positives(keys[0], tables, batch)
            nodes, valid = step.negatives(keys[1], tables, src)
            drawn = LinkBatch(src, dst, nodes, mask)
            blocks = step.sample(keys[2], tables.graph, drawn)
            read = parts.read(cast(Any, step), state.params, tables, blocks)
            return step.update(state, blind, parts.once(blocks, read), (drawn, valid))

        by_parts = jax.jit(by_parts)
        for batch in given["links"]:
            expected, _ = by_parts(expected, tables, blind, batch)
        for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    def test_a_part_draws_what_the_last_batch_does(self, tables):
        def draw(key, tables, batch):
            return jax.random.bits(key, (4,)) + batch.astype(jnp.uint32)

        found = unsupervised.drawing(draw, KEY, tables, jnp.array([7, 9]))
        assert np.array_equal(found, draw(jax.random.fold_in(KEY, 1), tables, jnp.int32(9)))


@pytest.mark.slow
def test_rows_compare_with_labels_and_have_a_table(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # keeps the suite's programs
    made = {}

    class OnLabels:
        """Instead of a step on labels: known times."""

        def __init__(self, setting, fanouts, capacities):
            self.seen = {"temp_bytes": 5}
            made[setting.batch_size] = setting

        def calls(self):
            return dict.fromkeys(("step", *train.PARTS), lambda: None)

    monkeypatch.setattr(train, "Trial", OnLabels)
    folder, target = tmp_path / "tiny", tmp_path / "unsupervised.json"
    data.save(folder, dataset)
    arguments = ["--graph", str(folder), "--json", str(target), "--kinds", "links", "--fanouts=4,3"]
    arguments += ["--seeds=62", "--hidden=16", "--steps=3", "--repetitions=1"]
    assert common.run(unsupervised.options(), unsupervised.main, arguments) == 0
    half, labels, links = json.loads(target.read_text())["rows"]
    assert [(row["kind"], row["seeds"], row["pairs"]) for row in (half, labels, links)] == [
        ("labels", 31, None),
        ("labels", 62, None),
        ("links", 62, 20),
    ]
    assert {size: len(setting.batches()[0]) for size, setting in made.items()} == {31: 3, 62: 3}
    assert links["traces"] == 1
    assert labels["ratio_to_labels"] == 1
    assert links["ratio_to_labels"] == pytest.approx(links["seconds_min"] / labels["seconds_min"])
    for name in ("positives", "negatives", "sampling", "gathering", "compute"):
        assert 0 < links[name]["seconds_min"] <= links[name]["seconds_median"]
    page = report.sections(tmp_path)
    assert "| kind | seeds | pairs | fanouts | step ms (min / median) | to labels | positives ms |" in page
    assert "| links | 62 | 20 | 4, 3 |" in page


@pytest.mark.slow
def test_a_step_on_pairs_is_compiled_from_shapes_alone():
    chosen = ["--graph=tiny", "--num-nodes=2e6", "--num-edges=9e6", "--aggregators=mean", "--dtypes=float32"]
    (case,) = ahead.cases(ahead.options("tpu", None, lanes=1).parse_args([*chosen, "--kinds=skip_gram"]))
    compiled = ahead.compile_step(case, jax.devices()[0])
    memory: Any = compiled.memory_analysis()
    assert memory.argument_size_in_bytes > 2_000_000 * (16 + 1 + 3) * 4 + 9_000_000 * 4
    assert hlo.offenders(compiled.as_text() or "", case.table_sizes, case.logits) == []


def test_a_kind_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no kind 'dgi': expected some of labels, skip_gram"):
        list(ahead.cases(ahead.options("tpu", None, lanes=1).parse_args(["--kinds", "dgi"])))
