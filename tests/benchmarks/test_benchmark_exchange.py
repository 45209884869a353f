"""What devices would send each other, counted again one id at a time."""

import json
from collections import Counter

import numpy as np
import pytest

from benchmarks import exchange
from benchmarks.common import run
from jsage.parallel import Workload, safe_capacity

SHARDS, SEEDS, FANOUTS = 3, 6, (3, 2)


@pytest.fixture(scope="module")
def graph():
    """Degrees 0 to 7; rows without repeats."""
    rng, degrees = np.random.default_rng(0), np.arange(40) % 8
    rows = [rng.choice(40, degree, replace=False) for degree in degrees]
    return exchange.Rows(np.cumsum(np.pad(degrees, (1, 0))), np.concatenate(rows).astype(np.int32))


@pytest.fixture(scope="module")
def batch(graph):
    rng = np.random.default_rng(1)
    return [exchange.frontiers(rng, graph, rng.integers(0, 40, SEEDS), FANOUTS) for _ in range(SHARDS)]


@pytest.fixture(scope="module")
def owner():
    return np.random.default_rng(2).integers(0, SHARDS, 40)


def neighbors_of(graph, node):
    return graph.indices[graph.indptr[node] : graph.indptr[node + 1]].tolist()


def test_neighbors_are_distinct_edges_and_all_of_them_where_they_are_few(graph):
    rng = np.random.default_rng(3)
    for node in range(40):
        found = exchange.neighbors(rng, graph, np.array([node]), 4).tolist()
        assert len(found) == len(set(found)) == min(len(neighbors_of(graph, node)), 4)
        assert set(found) <= set(neighbors_of(graph, node))


def test_every_subset_is_as_likely(graph):
    rng, node = np.random.default_rng(4), 7
    found = Counter(
        frozenset(exchange.neighbors(rng, graph, np.array([node]), 2).tolist()) for _ in range(4200)
    )
    expected = 4200 / 21
    assert len(found) == 21
    assert sum((times - expected) ** 2 / expected for times in found.values()) < 45  # 20 degrees, p 0.001


def test_an_id_that_comes_twice_draws_once(graph):
    found = exchange.neighbors(np.random.default_rng(5), graph, np.array([15, 7, 15]), 3)
    assert found.shape == (9,)
    assert found[:3].tolist() == found[6:].tolist()


def test_frontiers_hold_what_was_before(graph, batch):
    for device in batch:
        assert [len(ids) for ids in device][:1] == [SEEDS]
        for before, after, fanout in zip(device, device[1:], FANOUTS, strict=False):
            assert after[: len(before)].tolist() == before.tolist()
            assert len(after) - len(before) == sum(min(len(neighbors_of(graph, v)), fanout) for v in before)


@pytest.mark.parametrize("once", [True, False])
def test_ids_are_counted_by_asker_and_owner(graph, batch, owner, once):
    hot = exchange.hot_nodes(graph, 0.1)
    found = exchange.tally(batch, owner, hot, once)
    for asker, device in enumerate(batch):
        for hop, ids in enumerate(device):
            expected = [0] * SHARDS
            for node in set(ids.tolist()) if once else ids.tolist():
                expected[owner[node]] += not (hop == 2 and hot[node])
            assert found[hop, asker].tolist() == expected


def test_the_ideal_is_every_distinct_row_of_another_device_once(graph, batch, owner):
    hot, load = exchange.hot_nodes(graph, 0.1), Workload(40, 140, SHARDS, 5, seeds=SEEDS, fanouts=FANOUTS)
    expected = 0
    for asker, device in enumerate(batch):
        for hop, ids in enumerate(device):
            for node in set(ids.tolist()):
                if owner[node] == asker or (hop == 2 and hot[node]):
                    continue
                width = min(len(neighbors_of(graph, node)), FANOUTS[hop]) * 4 if hop < 2 else 5 * 2
                expected += 4 + width
    assert exchange.ideal(batch, graph, owner, hot, load) == expected


def test_the_hottest_are_those_of_most_edges_out(graph):
    times = Counter(graph.indices.tolist())
    hot = np.flatnonzero(exchange.hot_nodes(graph, 0.1))
    assert len(hot) == 4
    assert min(times[node] for node in hot) >= sorted(times.values())[-4]


@pytest.mark.parametrize("name", ["hashed", "contiguous", "balanced"])
def test_placements_are_what_they_are_called(graph, name):
    found = exchange.owners(graph, 4)[name]
    nodes, edges = np.bincount(found, minlength=4), np.bincount(found, graph.degrees + 1, minlength=4)
    assert nodes.tolist() == [10] * 4 or name == "balanced"
    assert (np.diff(found) >= 0).all() or name == "hashed"
    assert edges.max() - edges.min() <= 2 * 8 or name != "balanced"


def test_capacities_are_the_most_and_four_percent():
    counts = np.zeros((2, 2, 2), int)
    counts[:, 1, 0] = 100, 3
    assert exchange.capacities_of(counts, (1000, 1000)) == (104, 8)


@pytest.mark.slow
def test_the_command_writes_a_row_a_form_and_a_row_an_exchange(tmp_path):
    sizes = ["--nodes", "400", "--degree", "8", "--seeds", "4", "--shards", "2,4", "--bytes-shards", "4"]
    assert run(exchange.command(), exchange.main, [*sizes, "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == ["bytes"] * 6 + ["weak"] * 2 * 3 * 3
    for row in rows[:6]:
        assert 0 < row["ideal_bytes"] < row["bytes"]
        assert row["efficiency"] == pytest.approx(row["ideal_bytes"] / row["bytes"])
    once, every = rows[:2]
    assert once["asked"] < every["asked"]
    assert once["bytes"] < every["bytes"]
    for row in rows[6:]:
        assert row["mean"] <= row["most"]
        assert 0 <= row["overflow"] < 0.5
        assert 0 <= row["waste"] < 1
        assert (row["overflow"] > 0) == (row["most"] > row["capacity"])
    assert rows[6]["safe_capacity"] == safe_capacity(4, 2)
