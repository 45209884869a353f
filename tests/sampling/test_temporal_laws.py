"""No future edge under any draw, hop and view, and nothing of the future in outputs or gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import slow_but
from scipy import stats

from jsage.graph import before, cumulate, from_edges, sort_by_time, up_to, within
from jsage.nn import GraphSAGE, SAGEConv
from jsage.sampling import (
    ByNode,
    Causal,
    Labor,
    LinkBatch,
    Recent,
    TimedNodes,
    Weighted,
    WeightedWithReplacement,
    host_loader,
    latest,
    sample_blocks,
    sample_temporal_blocks,
    with_replacement,
    without_replacement,
)

KEY, MOST = jax.random.key(0), 2**31 - 1
DRAWS = {
    "latest": latest,
    "uniform": without_replacement,
    "with replacement": with_replacement,
    "recent": Recent(0.9),
    "weighted": Weighted(),
    "weighted with replacement": WeightedWithReplacement(),
    "labor": Labor(),
    "by node": ByNode(),
}
VIEWS = {
    "before": before,
    "up_to": up_to,
    "within": within(86_400),
    "causal, before": Causal(),
    "causal, within, up_to": Causal(within(10**6, up_to)),
}


def small() -> tuple[np.ndarray, np.ndarray]:
    """Pairs and times with many ties, some at the ends of int32."""
    rng = np.random.default_rng(1)
    time = np.concatenate([rng.integers(0, 40, 290) * 10_000, [-(2**31)] * 4, [MOST] * 6])
    return rng.integers(0, 12, (300, 2)), time


def real(folder, name: str) -> tuple[np.ndarray, np.ndarray]:
    """All events of a data set in both directions, their times from 0."""
    with np.load(folder / f"{name}.npz") as file:
        pairs, time = file["edge_index"].T, file["edge_time"]
    return np.concatenate([pairs, pairs[:, ::-1]]), np.tile(time - time.min(), 2).astype(np.int64)


def events(pairs: np.ndarray, time: np.ndarray):
    """A graph for every draw: weights to draw by, and each event's number."""
    weight = np.random.default_rng(2).exponential(size=len(time))
    return cumulate(
        sort_by_time(
            from_edges(*pairs.T, int(pairs.max()) + 1, time=time, weight=weight, number=np.arange(len(time)))
        )
    )


def check(pairs, time, seeds, blocks, view: str) -> int:
    """The slots that hold an event, each of which is legal: counted."""
    rows, asked, count = np.asarray(seeds.nodes, np.int64), np.asarray(seeds.time, np.int64), 0
    width = {"within": 86_400, "causal, within, up_to": 10**6}.get(view, 2**40)
    for block in reversed(jax.tree.map(np.asarray, blocks)):
        mask, data = block.mask, block.edge_data
        at, number = np.broadcast_to(asked[:, None], mask.shape), data["number"]
        happened, age = time[number[mask]], (at - time[number])[mask]
        np.testing.assert_array_equal(data["time"][mask], happened)
        own = np.broadcast_to(rows[:, None], mask.shape)
        np.testing.assert_array_equal(pairs[number[mask], 1], own[mask])
        least, most = (0, width - 1) if "up_to" in view else (1, width)
        assert (least <= age).all()
        assert (age <= most).all()
        np.testing.assert_array_equal(data["age"][mask], np.minimum(age, MOST))
        count += mask.sum()
        src = np.where(mask, pairs[number, 0], own)
        event = np.where(mask, time[number], at) if "causal" in view else at
        rows, asked = np.concatenate([rows, src.ravel()]), np.concatenate([asked, event.ravel()])
    return int(count)


def moments(pairs, time, num: int, seed: int) -> TimedNodes:
    """Nodes at times of their own events, and some at the ends of int32."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(time), num)
    when = time[chosen] + rng.integers(-1, 2, num)
    when[:4] = [MOST, MOST, -(2**31), 0]
    return TimedNodes(pairs[chosen, 1].astype(np.int32), np.clip(when, -(2**31), MOST).astype(np.int32))


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("view", slow_but(["causal, within, up_to"], VIEWS))
def test_every_slot_holds_an_event_that_is_visible(view: str, draw: str):
    pairs, time = small()
    sample = jax.jit(partial(sample_temporal_blocks, fanouts=(4, 3), draw=DRAWS[draw], visible=VIEWS[view]))
    seeds = moments(pairs, time, 64, 0)
    assert check(pairs, time, seeds, sample(KEY, events(pairs, time), seeds), view) > 150


@pytest.mark.slow
@pytest.mark.parametrize("draw", DRAWS)
def test_no_future_edge_in_a_million_slots_of_real_events(draw: str, data_folder):
    """All draws together see ten times as many, over the three graphs of events and all views."""
    total = 0
    for name in ("collegemsg", "bitcoin_alpha", "temporal_enron"):
        pairs, time = real(data_folder, name)
        graph = events(pairs, time)
        for view in VIEWS if name == "collegemsg" else ("before", "causal, within, up_to"):
            sample = jax.jit(
                partial(sample_temporal_blocks, fanouts=(10, 10), draw=DRAWS[draw], visible=VIEWS[view])
            )
            for seed in range(3):
                seeds = moments(pairs, time, 2048, seed)
                blocks = sample(jax.random.fold_in(KEY, seed), graph, seeds)
                total += check(pairs, time, seeds, blocks, view)
    assert total > 10**6


def test_equal_times_are_all_there_up_to_them_and_none_before():
    graph = events(np.array([[i, 0] for i in range(1, 6)]), np.full(5, 7))
    seeds = TimedNodes(np.zeros(3, np.int32), np.array([6, 7, 8], np.int32))
    for view, degrees in ((before, [0, 0, 5]), (up_to, [0, 5, 5])):
        for draw in (latest, without_replacement, Weighted()):
            sample = jax.jit(partial(sample_temporal_blocks, fanouts=(9,), draw=draw, visible=view))
            np.testing.assert_array_equal(sample(KEY, graph, seeds)[0].mask.sum(1), degrees)


def test_draws_are_uniform_over_what_is_visible():
    """One row, at the times of three prefixes and of a window."""
    graph = events(np.array([[i + 1, 0] for i in range(30)]), np.arange(30))
    for view, low, high in ((before, 0, 9), (up_to, 0, 10), (within(6), 3, 9), (within(6, up_to), 4, 10)):
        seeds = TimedNodes(np.zeros(40_000, np.int32), np.full(40_000, 9, np.int32))
        sample = jax.jit(
            partial(sample_temporal_blocks, fanouts=(2,), draw=without_replacement, visible=view)
        )
        number = np.sort(np.asarray(sample(KEY, graph, seeds)[0].edge_data["number"]), 1)
        subsets = np.unique(number, axis=0, return_counts=True)[1]
        size = high - low
        assert number.min() == low
        assert number.max() == high - 1
        assert len(subsets) == size * (size - 1) // 2
        assert stats.chisquare(subsets).pvalue > 1e-3


@pytest.mark.parametrize("draw", slow_but(["uniform", "weighted"], DRAWS))
def test_after_all_events_it_draws_the_bits_of_the_static_sampler(draw: str):
    pairs, time = small()
    time = time.clip(0, 10**6)
    graph, nodes = events(pairs, time), np.arange(12, dtype=np.int32)
    static = jax.jit(partial(sample_blocks, fanouts=(4, 3), draw=DRAWS[draw]))(
        KEY, graph.graph if draw in ("latest", "uniform") else graph, nodes
    )
    for view, when in ((before, 10**6 + 1), (up_to, 10**6), (up_to, MOST)):
        sample = jax.jit(partial(sample_temporal_blocks, fanouts=(4, 3), draw=DRAWS[draw], visible=view))
        found = sample(KEY, graph, TimedNodes(nodes, np.full(12, when, np.int32)))
        for block, other in zip(found, static, strict=True):
            np.testing.assert_array_equal(block.mask, other.mask)
            np.testing.assert_array_equal(
                *(np.where(b.mask, b.edge_data["number"], -1) for b in (block, other))
            )


def test_vmap_over_times_is_a_loop_and_all_of_it_is_one_trace():
    pairs, time = small()
    graph, nodes = events(pairs, time), np.arange(12, dtype=np.int32)
    times, traces = np.array([[0] * 12, [10_000] * 12, [MOST] * 12], np.int32), []

    @jax.jit
    def sample(graph, when):
        traces.append(when.shape)
        seeds = TimedNodes(jnp.asarray(nodes), when)
        return sample_temporal_blocks(KEY, graph, seeds, (4, 3), draw=without_replacement, visible=up_to)

    many = jax.jit(jax.vmap(sample, (None, 0)))(graph, times)
    for i, when in enumerate(times):
        one = jax.tree.map(lambda rows, i=i: np.asarray(rows)[i], many)
        jax.tree.map(np.testing.assert_array_equal, sample(graph, when), one)
    assert traces == [(12,)]


def poisoned(pairs, time, now: int, x, y):
    """Other sources and times from `now` on; no features and labels of nodes that are yet to come."""
    rng, late = np.random.default_rng(5), time >= now
    unborn = np.setdiff1d(np.arange(len(x)), pairs[~late])
    pairs, time, x, y = pairs.copy(), time.copy(), x.copy(), y.copy()
    pairs[late, 0] = rng.permutation(pairs[late, 0])
    time[late] = now + rng.permutation(time[late] - now)
    x[unborn], y[unborn] = np.nan, np.nan
    return pairs, time, x, y, late


@pytest.mark.parametrize("causal", slow_but([True], [True, False]))
@pytest.mark.parametrize("draw", slow_but(["uniform"], [n for n in DRAWS if "weighted" not in n]))
def test_poison_of_the_future_changes_no_bit_of_outputs_and_gradients(draw: str, causal: bool):
    """Weighted draws are by tables whose units are of whole rows: their own poison is in test_weighted."""
    rng, now = np.random.default_rng(7), 60
    pairs, time = rng.integers(0, 14, (240, 2)), np.sort(rng.integers(0, 100, 240))
    pairs[time < now] %= 11  # nodes 11 to 13 come later
    x, y = rng.normal(size=(14, 3)).astype(np.float32), rng.normal(size=14)
    worse = poisoned(pairs, time, now, x, y)
    rows = rng.normal(size=(240, 2)).astype(np.float32)
    model = GraphSAGE(6, 1, conv=partial(SAGEConv, edge="x"))
    seeds = TimedNodes(np.arange(11, dtype=np.int32), np.full(11, now, np.int32))
    visible = Causal(before) if causal else before

    @jax.jit
    def run(graph, x, y):
        blocks = sample_temporal_blocks(KEY, graph, seeds, (4, 3), draw=DRAWS[draw], visible=visible)
        age = [jnp.log1p(block.edge_data["age"].astype(jnp.float32)) for block in blocks]
        blocks = tuple(
            block._replace(edge_data={"x": jnp.concatenate([block.edge_data["x"], a[..., None]], -1)})
            for block, a in zip(blocks, age, strict=True)
        )
        params = model.init(jax.random.key(1), jnp.zeros_like(x), blocks)

        def loss(params, x):
            out = model.apply(params, x, blocks)[:, 0]
            return ((out - y[:11]) ** 2).sum(), out

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    found = []
    for ends, when, table, labels, late in ((pairs, time, x, y, time < 0), worse):
        data = np.where(late[:, None], np.nan, rows).astype(np.float32)
        graph = sort_by_time(from_edges(*ends.T, 14, time=when))
        order = np.lexsort((when, ends[:, 1]))
        graph = graph._replace(edge_data={**graph.edge_data, "x": jax.device_put(data[order])})
        found.append(run(graph, table, labels.astype(np.float32)))
    assert float(found[0][0][0]) > 0
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.mark.parametrize("draw", [latest, without_replacement])
def test_own_events_of_a_batch_of_links_are_not_drawn(draw):
    """Nor any other of that very time; earlier events of the batch are."""
    pairs, time = small()
    keep = (time > 0) & (time < MOST)
    pairs, time = pairs[keep], time[keep].astype(np.int32)
    graph = events(np.concatenate([pairs, pairs[:, ::-1]]), np.concatenate([time, time]))
    noise = np.random.default_rng(3).integers(0, 12, (len(pairs), 2))
    batch = LinkBatch(*map(jnp.asarray, (*pairs.T, noise, np.ones(len(pairs), bool))))
    seeds = batch.timed(jnp.asarray(time))
    own = np.concatenate([np.arange(len(time))] * 2 + [np.repeat(np.arange(len(time)), 2)])
    np.testing.assert_array_equal(seeds.time, time[own])
    blocks = jax.jit(partial(sample_temporal_blocks, fanouts=(9, 3), draw=draw))(KEY, graph, seeds)
    for block in reversed(jax.tree.map(np.asarray, blocks)):
        number = block.edge_data["number"] % len(time)
        assert (number[block.mask] != np.broadcast_to(own[:, None], number.shape)[block.mask]).all()
        assert (time[number] < time[own][:, None])[block.mask].all()
        own = np.concatenate([own, np.repeat(own, 9)])
    with pytest.raises(ValueError, match=r"got \(3,\) times and negatives of shape"):
        batch.timed(jnp.zeros(3, jnp.int32))


def test_the_host_loader_brings_the_rows_of_seeds_with_times():
    pairs, time = small()
    graph, x = events(pairs, time).graph, np.arange(24, dtype=np.float32).reshape(12, 2)
    seeds = moments(pairs, time, 24, 1)
    batches = (TimedNodes(*(rows.reshape(3, 8) for rows in seeds)), np.ones((3, 8), bool))
    sampler = host_loader.temporal_sampler((3, 2), visible=up_to)
    rows = host_loader.measure_rows(sampler, KEY, graph, batches, together=2)
    loader = host_loader.Loader(sampler, graph, x, rows)
    groups = list(loader.prefetch(KEY, 5, batches, together=2))
    assert [len(group.batch[1]) for group in groups] == [2, 1]
    for step, (first, last) in enumerate((g.blocks for g in groups for _ in g.batch[1]), 5):
        i = (step - 5) % 2
        some = TimedNodes(*(jnp.asarray(rows[step - 5]) for rows in batches[0]))
        expected = sample_temporal_blocks(jax.random.fold_in(KEY, step), graph, some, (3, 2), visible=up_to)
        np.testing.assert_array_equal(last.mask[i], expected[1].mask)
        table = np.asarray(groups[(step - 5) // 2].rows)
        np.testing.assert_array_equal(table[np.asarray(first.src)[i]], x[np.asarray(expected[0].src)])
