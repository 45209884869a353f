"""Draws by weight: the law of successive sampling to the letter, alone, before a time, and compacted."""

from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, graph, slow_but
from scipy import stats

from jsage.graph import (
    GraphBefore,
    alias_tables,
    before,
    cumulate,
    from_edges,
    sort_by_time,
    sort_rows,
    up_to,
    within,
)
from jsage.sampling import (
    LinkBatch,
    TimedNodes,
    Weighted,
    WeightedWithReplacement,
    fast_key,
    sample_blocks,
    sample_compact_blocks,
    sample_link_blocks,
    sample_neighbors,
    sample_temporal_blocks,
    threefry_key,
    without_replacement,
)

WEIGHTS = np.array([5.0, 1.0, 0.0, 3.0, 0.5, 2.0])
POSITIVE = np.flatnonzero(WEIGHTS)
ROW = from_edges(np.arange(6), np.zeros(6, int), num_nodes=6, weight=WEIGHTS)
DRAWS = {"weighted": Weighted(), "weighted by node": Weighted(by_node=True)}

compiled = jax.jit(lambda draw, k, *given: draw.offsets(*given, k), static_argnums=(0, 1))


def drawn(draw, graph, draws: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`(offset, mask)` of so many draws of node 0's edges."""
    found = compiled(draw, k, jax.random.key(seed), graph, np.zeros(draws, np.int32))
    return np.asarray(found[0]), np.asarray(found[1])


def chance(order: tuple[int, ...], weights: np.ndarray = WEIGHTS) -> float:
    """The probability that edges are drawn in this order: each among those left."""
    left, found = weights.sum(), 1.0
    for edge in order:
        found, left = found * weights[edge] / left, left - weights[edge]
    return found


def ordered(drawn: np.ndarray, choices: np.ndarray, weights: np.ndarray = WEIGHTS) -> float:
    """The p-value of ordered tuples `[draws, k]` by chi-square."""
    base = len(weights) ** np.arange(drawn.shape[1])
    seen = np.bincount(drawn @ base, minlength=len(weights) ** drawn.shape[1])
    orders = list(permutations(choices, drawn.shape[1]))
    observed = np.array([seen[np.array(order) @ base] for order in orders])
    assert observed.sum() == len(drawn)  # no edge twice, none of weight 0
    return stats.chisquare(observed, [len(drawn) * chance(order, weights) for order in orders]).pvalue


@pytest.mark.parametrize("draws", slow_but([20_000], [20_000, 200_000]))
@pytest.mark.parametrize("name", DRAWS)
def test_ordered_triples_are_those_of_successive_sampling(name: str, draws: int):
    if name == "weighted":
        offset, mask = drawn(DRAWS[name], cumulate(ROW), draws, 3)
    else:  # one node, many keys
        one = jax.vmap(lambda key: DRAWS[name].offsets(key, cumulate(ROW), jnp.zeros(1, jnp.int32), 3))
        offset, mask = (x[:, 0] for x in jax.jit(one)(jax.random.split(jax.random.key(0), draws)))
    assert np.asarray(mask).all()
    assert ordered(np.asarray(offset), POSITIVE) > 1e-3


def test_it_is_the_law_of_efraimidis_and_spirakis():
    """The order of the largest `u ** (1 / w)`, drawn by NumPy, is of the same law: their counts agree."""
    draws = 20_000
    rng = np.random.default_rng(0)
    keys = np.log(rng.random((draws, 5))) / WEIGHTS[POSITIVE]
    theirs = POSITIVE[np.argsort(-keys, 1)[:, :3]] @ np.array([1, 6, 36])
    ours = drawn(Weighted(), cumulate(ROW), draws, 3, seed=1)[0]
    counts = np.stack([np.bincount(x, minlength=216) for x in (ours @ np.array([1, 6, 36]), theirs)])
    counts = counts[:, counts.sum(0) > 20]
    assert stats.chi2_contingency(counts).pvalue > 1e-3


def test_fewer_positive_weights_than_slots_are_all_taken():
    offset, mask = drawn(Weighted(), cumulate(ROW), 500, 8, seed=2)
    assert (mask == (np.arange(8) < 5)).all()
    assert (offset[~mask] == 0).all()
    assert (np.sort(offset[:, :5], 1) == POSITIVE).all()
    assert ordered(offset[:, :2], POSITIVE) > 1e-3


def test_a_weight_far_below_the_others_is_drawn_when_nothing_else_is_left():
    tiny = from_edges(np.arange(4), np.zeros(4, int), 4, weight=[1e-30, 1.0, 1e-20, 1e10])
    offset, mask = drawn(Weighted(), cumulate(tiny), 9, 4)
    assert mask.all()
    assert (offset[:, 0] == 3).all()
    assert (np.sort(offset, 1) == np.arange(4)).all()


def test_in_a_hub_of_a_hundred_thousand_edges_draws_are_in_proportion():
    n, draws, k = 100_000, 2_000, 10
    weight = np.random.default_rng(0).exponential(size=n) ** 2
    hub = from_edges(np.zeros(n, int), np.zeros(n, int), 1, weight=weight)
    offset, mask = drawn(Weighted(), cumulate(hub), draws, k)
    assert mask.all()
    assert (np.diff(np.sort(offset, 1), axis=1) > 0).all()
    bounds = np.searchsorted(np.cumsum(weight), np.linspace(0, 1, 41)[1:-1] * weight.sum())
    cell = np.searchsorted(bounds, offset[:, 0], side="right")
    expected = np.diff(np.concatenate([[0], np.cumsum(weight)[bounds - 1], [weight.sum()]]))
    observed = np.bincount(cell, minlength=40)
    assert stats.chisquare(observed, expected / expected.sum() * draws).pvalue > 1e-3


def test_with_equal_weights_subsets_are_uniform():
    equal = cumulate(from_edges(np.arange(5), np.zeros(5, int), 5, weight=np.ones(5)))
    offset = drawn(Weighted(), equal, 20_000, 2)[0]
    assert ordered(offset, np.arange(5), np.ones(5)) > 1e-3


class TestWithReplacement:
    draw = WeightedWithReplacement()

    def test_slots_are_independent_and_in_proportion(self):
        draws = 50_000
        offset, mask = drawn(self.draw, alias_tables(ROW), draws, 2)
        assert mask.all()
        share = WEIGHTS[POSITIVE] / WEIGHTS.sum()
        observed = np.bincount(offset @ [1, 6], minlength=36).reshape(6, 6)
        assert observed[2].sum() == observed[:, 2].sum() == 0
        observed, expected = observed[np.ix_(POSITIVE, POSITIVE)], draws * np.outer(share, share)
        assert stats.chisquare(observed.ravel(), expected.ravel()).pvalue > 1e-3

    def test_the_mean_is_unbiased_for_the_weighted_mean(self):
        weight = 0.5 + np.arange(40, dtype=np.float32) % 5
        cut = graph("random")._replace(edge_data={"weight": weight})
        message, seeds = (
            np.random.default_rng(0).normal(size=8),
            np.tile(np.arange(8, dtype=np.int32), 20_000),
        )
        sample = jax.jit(partial(sample_neighbors, fanout=3, draw=self.draw))
        block = jax.tree.map(np.asarray, sample(jax.random.key(0), alias_tables(cut), seeds))
        mean = np.where(block.mask, message[block.src], 0).mean(1).reshape(20_000, 8)
        indptr, indices = np.asarray(cut.indptr), np.asarray(cut.indices)
        for v in range(8):
            row = slice(indptr[v], indptr[v + 1])
            expected = (weight[row] * message[indices[row]]).sum() / (weight[row].sum() or 1)
            assert abs(mean[:, v].mean() - expected) <= 4 * mean[:, v].std() / np.sqrt(20_000) + 1e-9

    def test_by_node_a_node_has_the_same_draw_anywhere(self):
        offset, _ = drawn(WeightedWithReplacement(by_node=True), alias_tables(ROW), 2, 3)
        np.testing.assert_array_equal(offset[0], offset[1])

    def test_rows_without_weight_draw_none(self):
        offset, mask = drawn(self.draw, alias_tables(from_edges([0, 1], [0, 0], 2, weight=[0.0, 0.0])), 2, 3)
        assert not mask.any()
        assert not offset.any()


EVENTS = 60
RNG = np.random.default_rng(1)
SRC, TIME = RNG.integers(0, 4, EVENTS), np.sort(RNG.integers(0, 30, EVENTS))
SHARE = RNG.exponential(size=EVENTS)


class TestBeforeATime:
    """Weighted and temporal: the law of the row that is cut at the time."""

    row = cumulate(
        sort_by_time(
            from_edges(
                np.arange(5), np.zeros(5, int), 5, time=np.arange(5), weight=[2.0, 0.5, 1.0, 50.0, 7.0]
            )
        )
    )

    def test_ordered_pairs_are_those_of_the_earlier_edges(self):
        before = GraphBefore(self.row, jnp.int32(3))
        offset, mask = drawn(Weighted(), before, 20_000, 2)
        assert mask.all()
        assert ordered(offset, np.arange(3), np.array([2.0, 0.5, 1.0])) > 1e-3

    @pytest.mark.parametrize(
        ("view", "shown"), [(before, [2.0, 0.5, 1.0]), (up_to, [0.5, 1.0, 50.0]), (within(2), [0.5, 1.0])]
    )
    def test_draws_with_replacement_and_in_windows_are_those_of_the_visible_edges(self, view, shown):
        """The law of a cut row, from tables of the whole one."""
        graph = (within(3, view) if view is up_to else view)(self.row, jnp.int32(3))
        first = 3 - len(shown) + (view is up_to)
        offset, mask = drawn(WeightedWithReplacement(), graph, 10_000, 3)
        assert mask.all()
        share = np.array(shown) / sum(shown)
        counts = [np.bincount(slot, minlength=len(shown)) for slot in offset.T]
        for count in counts:
            assert stats.chisquare(count, len(offset) * share).pvalue > 1e-3
        edges = jax.jit(type(graph).edges_at)(graph, np.zeros(len(offset), np.int32), offset, mask)[0]
        assert set(np.asarray(edges).ravel()) == set(range(first, first + len(shown)))
        pairs, full = drawn(Weighted(), graph, 20_000, 2)
        assert full.all()
        assert ordered(pairs, np.arange(len(shown)), np.array(shown)) > 1e-3

    def test_what_comes_later_is_not_read(self):
        """Later edges and their weights poisoned: the same draws, bit for bit."""
        before = (GraphBefore(tables, jnp.int32(3)) for tables in (self.row, self.poisoned()))
        ours, theirs = (drawn(Weighted(), tables, 500, 3) for tables in before)
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)

    def poisoned(self):
        later = np.asarray(self.row.graph.edge_data["time"]) >= 3
        graph = self.row.graph
        indices = jax.device_put(np.where(later, -1, graph.indices).astype(np.int32))
        graph = type(graph)(graph.indptr, indices, graph.edge_data)
        sums = np.where(later, 2**31 - 1, self.row.cumulative).astype(np.int32)
        return self.row._replace(graph=graph, cumulative=jax.device_put(sums))

    def test_no_slot_holds_what_is_not_yet_and_all_is_taken_where_it_fits(self):
        timed = cumulate(sort_by_time(from_edges(SRC, np.arange(EVENTS) % 4, 4, time=TIME, weight=SHARE)))
        nodes, when = np.meshgrid(np.arange(4, dtype=np.int32), np.arange(31, dtype=np.int32))
        seeds = TimedNodes(nodes.ravel(), when.ravel())
        sample = jax.jit(partial(sample_temporal_blocks, fanouts=(20, 3), draw=Weighted()))
        first, last = jax.tree.map(np.asarray, sample(jax.random.key(0), timed, seeds))
        when = np.concatenate([seeds.time, np.repeat(seeds.time, 20)])
        assert (last.edge_data["time"] < seeds.time[:, None])[last.mask].all()
        assert (first.edge_data["time"] < when[:, None])[first.mask].all()
        early = [(TIME[np.arange(EVENTS) % 4 == v] < t).sum() for v, t in zip(*seeds, strict=True)]
        np.testing.assert_array_equal(last.mask.sum(1), early)


@pytest.mark.parametrize("draw", [Weighted(), Weighted(by_node=True)])
@pytest.mark.parametrize("name", slow_but(["random"], AWKWARD))
def test_compacted_it_draws_edges_and_none_twice(name: str, draw):
    plain = graph(name)
    weights = np.arange(plain.num_edges, dtype=np.float32) % 4
    tables = cumulate(plain._replace(edge_data={"weight": weights, "number": np.arange(len(weights))}))
    seeds = np.array([3, 0, 3, 1], np.int32)
    sample = jax.jit(partial(sample_compact_blocks, fanouts=(2, 3), capacities=(12,), draw=draw))
    (first, last), fits = jax.tree.map(np.asarray, sample(jax.random.key(2), tables, seeds))
    assert fits
    size = 1 + max(last.dst.max(), last.src.max())
    indptr = np.asarray(plain.indptr)
    for row in range(size):
        v, valid = first.dst[row], first.mask[row]
        number = first.edge_data["number"][row][valid]
        own = np.arange(indptr[v], indptr[v + 1])
        assert len(set(number)) == len(number) == min((weights[own] > 0).sum(), 3)
        assert set(number) <= set(own[weights[own] > 0])
    assert not first.mask[size:].any()


def test_by_node_a_node_has_the_same_neighbors_in_any_batch():
    tables = cumulate(graph("random")._replace(edge_data={"weight": np.ones(40, np.float32)}))
    key = threefry_key(fast_key(0))
    sample = jax.jit(partial(sample_blocks, fanouts=(2, 2), draw=Weighted(by_node=True)))
    one, other = (sample(key, tables, np.array(seeds, np.int32)) for seeds in ([5, 2, 5], [2, 0, 5]))
    near = [np.asarray(blocks[0].dst)[3:].reshape(3, 2) for blocks in (one, other)]
    np.testing.assert_array_equal(near[0][[0, 1]], near[0][[2, 1]])
    np.testing.assert_array_equal(near[0][[1, 2]], near[1][[0, 2]])


def test_a_graph_without_tables_is_refused():
    key, seeds = jax.random.key(0), jnp.array([0])
    plain = sort_rows(ROW)
    with pytest.raises(
        TypeError, match=r"tables that a SortedGraph does not have: pass jsage.graph.cumulate"
    ):
        sample_neighbors(key, plain, seeds, 2, draw=Weighted())
    with pytest.raises(TypeError, match="tables that a AliasGraph does not have"):
        sample_neighbors(key, alias_tables(ROW), seeds, 2, draw=Weighted())
    with pytest.raises(TypeError, match=r"a SortedGraph does not have: pass jsage.graph.alias_tables"):
        sample_neighbors(key, plain, seeds, 2, draw=WeightedWithReplacement())
    batch = LinkBatch(seeds, seeds, seeds[None], jnp.array([True]))
    with pytest.raises(TypeError, match="tables that a GraphWithoutEdges does not have"):
        sample_link_blocks(key, plain, batch, (2,), draw=Weighted())


def test_any_draw_reads_a_weighted_graph():
    block = sample_neighbors(jax.random.key(0), cumulate(ROW), jnp.array([0]), 9, draw=without_replacement)
    np.testing.assert_array_equal(block.src[0, :6], np.arange(6))
