"""Ranks with ties against brute force, OGB's evaluator and scikit-learn; ranking against all candidates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from jsage.graph import from_edges
from jsage.metrics import Ranks, hits, hits_above, mrr, ndcg, rank_all, ranks, ranks_within, recall

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def whole(function, *static: int):
    """A function as one program, where each of its operations would be one; what it gives is on the host."""
    compiled = jax.jit(function, static_argnums=static)
    return lambda *args: jax.tree.map(np.asarray, compiled(*args))


ranks, ranks_within, mrr, hits = whole(ranks), whole(ranks_within), whole(mrr), whole(hits, 1)
hits_above, ndcg, recall = whole(hits_above, 2), whole(ndcg, 2), whole(recall, 2)
rank_of = whole(lambda found: found.rank)
RNG = np.random.default_rng(0)


def integers(*shape: int, high: int = 5) -> np.ndarray:
    """Scores with many ties."""
    return RNG.integers(0, high, shape).astype(np.float32)


def ogb_ranks(positive: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """What ogb.linkproppred.Evaluator computes for its MRR data sets."""
    optimistic = (negatives > positive[:, None]).sum(1)
    pessimistic = (negatives >= positive[:, None]).sum(1)
    return 0.5 * (optimistic + pessimistic) + 1


def ogb_hits(positive: np.ndarray, negatives: np.ndarray, k: int) -> float:
    """What ogb.linkproppred.Evaluator computes for its Hits@K data sets."""
    if len(negatives) < k:
        return 1.0
    return float((positive > np.sort(negatives)[-k]).mean())


def test_ranks_mrr_and_hits_are_ogbs():
    positive, negatives = integers(50), integers(50, 12)
    expected = ogb_ranks(positive, negatives)
    got = ranks(positive, negatives)
    np.testing.assert_array_equal(rank_of(got), expected)
    assert (got.tied > 0).any()
    assert mrr(got) == pytest.approx((1 / expected).mean(), rel=1e-6)
    for k in (1, 3, 10, 99):
        assert hits(got, k) == pytest.approx((expected <= k).mean())


def test_dead_negatives_and_rows_do_not_count():
    positive, negatives = integers(9), integers(9, 6)
    valid, rows = RNG.random((9, 6)) < 0.5, np.arange(9) < 6
    valid[3] = False
    poisoned = np.where(valid, negatives, np.nan)
    got = ranks(positive, poisoned, valid)
    expected = [
        ogb_ranks(positive[i : i + 1], negatives[i : i + 1, valid[i]])[0] for i in range(len(positive))
    ]
    np.testing.assert_array_equal(rank_of(got), expected)
    assert rank_of(got)[3] == 1
    assert mrr(got, rows) == pytest.approx((1 / np.array(expected))[rows].mean(), rel=1e-6)
    assert hits(got, 2, rows) == pytest.approx((np.array(expected)[rows] <= 2).mean())
    assert mrr(got, np.zeros(9, bool)) == 0


@pytest.mark.parametrize("k", [1, 3, 20, 39, 40, 41])
def test_hits_above_are_ogbs(k: int):
    positive, negatives = integers(30, high=50), integers(40, high=50)
    assert hits_above(positive, negatives, k) == pytest.approx(ogb_hits(positive, negatives, k))
    valid, rows = RNG.random(40) < 0.7, RNG.random(30) < 0.7
    poisoned = np.where(valid, negatives, np.nan), np.where(rows, positive, np.nan)
    got = hits_above(poisoned[1], poisoned[0], k, rows, valid)
    assert got == pytest.approx(ogb_hits(positive[rows], negatives[valid], k))


def test_nan_counts_against_the_target():
    nan, row = np.nan, partial(np.array, dtype=np.float32)
    got = ranks(row([nan, 1.0]), row([[0.0, nan], [nan, 0.5]]))
    assert rank_of(got).tolist() == [3, 2]
    assert rank_of(ranks_within(row([[nan, 1.0, 0.5]]))).tolist() == [[3, 2, 3]]
    assert hits_above(row([nan, 9.0]), row([0.0, 1.0]), 1) == 0.5
    assert hits_above(row([9.0]), row([nan, 0.0]), 1) == 0
    table = jax.device_put(row([[1.0], [nan], [0.5], [nan]]))
    rank = jax.jit(lambda targets: rank_all(lambda ids: jnp.tile(table[ids].T, (3, 1)), targets, 4, chunk=3))
    got = rank(np.array([0, 1, 2]))
    assert rank_of(got).tolist() == [3, 4, 4]


def test_ranks_within_are_the_ranks_among_the_others():
    scores, valid = integers(8, 9, high=4), RNG.random((8, 9)) < 0.7
    scores[scores == 0] = -np.inf  # ties with what padding could be
    scores[:, 0] = -0.0
    got = ranks_within(np.where(valid, scores, np.nan), valid)
    for user, entry in zip(*np.nonzero(valid), strict=True):
        others = valid[user] & (np.arange(9) != entry)
        expected = ogb_ranks(scores[user, entry][None], scores[user, others][None])[0]
        assert rank_of(got)[user, entry] == expected


@pytest.mark.parametrize("k", [1, 2, 5, 10, 30])
def test_ndcg_is_scikit_learns(k: int):
    scores, gains = integers(40, 10), integers(40, 10, high=4)
    gains[0], scores[1] = 0, 1  # a user without a gain, one whose items all tie
    got = ndcg(ranks_within(scores), gains, k)
    expected = [ndcg_score(y[None], s[None], k=k) for y, s in zip(gains, scores, strict=True)]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)
    assert got[0] == 0
    binary = ndcg(ranks_within(scores), gains > 1, k)
    np.testing.assert_allclose(binary.mean(), ndcg_score(gains > 1, scores, k=k), rtol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_recall_is_the_mean_over_orders_of_the_tied(k: int):
    scores, relevant = integers(6, 8, high=3), RNG.random((6, 8)) < 0.4
    relevant[2] = False
    got = recall(ranks_within(scores), relevant, k)
    orders = [np.lexsort((RNG.random((6, 8)), -scores)) for _ in range(4000)]
    found = np.mean([np.take_along_axis(relevant, order[:, :k], 1).sum(1) for order in orders], 0)
    np.testing.assert_allclose(got, found / np.maximum(relevant.sum(1), 1), atol=0.04)
    assert got[2] == 0
    distinct = RNG.permuted(np.tile(np.arange(8, dtype=np.float32), (6, 1)), axis=1)
    got = recall(ranks_within(distinct), relevant, k)
    found = (relevant & (distinct >= 8 - k)).sum(1) / np.maximum(relevant.sum(1), 1)
    np.testing.assert_allclose(got, found, rtol=1e-6)


def test_ranks_of_the_relevant_items_alone_are_enough():
    """The `[u, m]` form: padded places hold any rank."""
    scores, relevant = integers(4, 9), RNG.random((4, 9)) < 0.4
    whole = ranks_within(scores)
    order = np.argsort(~relevant, axis=1, kind="stable")[:, :6]
    assert relevant.sum(1).max() <= 6
    few = Ranks(*(np.take_along_axis(np.asarray(x), order, 1) for x in whole))
    kept = np.take_along_axis(relevant, order, 1)
    few = Ranks(np.where(kept, few.above, -7), np.where(kept, few.tied, 2**31 - 2))
    for k in (1, 4, 20):
        np.testing.assert_allclose(recall(few, kept, k), recall(whole, relevant, k), rtol=1e-6)
        np.testing.assert_allclose(ndcg(few, kept, k), ndcg(whole, relevant, k), rtol=1e-6)


def test_whole_numbers_stay_exact_beyond_what_floats_count():
    above = np.array([[2**24 + 1, 2**24, 2**30]], np.int32)
    got = recall(Ranks(above, np.zeros_like(above)), np.ones((1, 3), bool), 2**24 + 1)
    assert got[0] == pytest.approx(1 / 3)  # of places 0 .. 2^24 alone
    deep, last = Ranks(np.array([[10**5 - 2]]), np.array([[1]])), np.array([10**5, 10**5 + 1])
    expected = (1 / np.log2(last)).mean()  # a difference of sums near 7000
    assert ndcg(deep, np.ones((1, 1), np.float32), 10**5)[0] == pytest.approx(expected, rel=1e-5)


Q, N, D = 6, 23, 4


def brute(scores: np.ndarray, targets: np.ndarray, left_out: list[set[int]]) -> np.ndarray:
    """One query at a time, over all candidates."""
    found = []
    for query, target in enumerate(targets):
        others = [c for c in range(scores.shape[1]) if c != target and c not in left_out[query]]
        found.append(ogb_ranks(scores[query, target][None], scores[query, others][None])[0])
    return np.array(found)


@pytest.mark.parametrize("chunk", [1, 4, 23, 100])
def test_rank_all_is_brute_force(chunk: int):
    queries, table = integers(Q, D, high=3), integers(N, D, high=3)
    targets = RNG.integers(0, N, Q).astype(np.int32)
    targets[:2] = 0, N - 1
    num_rows = N  # more rows than queries: those of a query are told
    src, dst = RNG.integers(0, N, (2, 150)).astype(np.int32)
    rows = np.array([3, 3, 0, 7, 9, N - 1], np.int32)
    dst[np.isin(dst, [7])] = 8  # a query without known candidates
    src, dst = np.append(src, targets), np.append(dst, rows)  # a target among the known is not left out
    order = np.argsort(src, kind="stable")
    graph = from_edges(src[order], dst[order], num_nodes=num_rows)

    @jax.jit
    def both(queries, table, targets, graph, rows):
        def score(ids):
            return queries @ table[ids].T

        plain = rank_all(score, targets, N, chunk=chunk)
        return plain, rank_all(score, targets, N, known=graph, rows=rows, chunk=chunk)

    plain, filtered = jax.tree.map(np.asarray, both(queries, table, targets, graph, rows))
    scores = queries @ table.T
    np.testing.assert_array_equal(rank_of(plain), brute(scores, targets, [set()] * Q))
    known = [set(src[dst == row].tolist()) for row in rows]
    np.testing.assert_array_equal(rank_of(filtered), brute(scores, targets, known))
    assert (rank_of(filtered) < rank_of(plain)).any()
    assert (plain.tied > 0).any()


def test_a_target_that_is_not_known_and_a_row_that_knows_all():
    scores, targets = integers(2, 5), np.array([2, 4])
    everything = from_edges(np.arange(5), np.zeros(5, int), num_nodes=5)
    for graph, row, expected in (
        (everything, 0, [1, 1]),
        (everything, 1, brute(scores, targets, [set()] * 2)),
        (from_edges([], [], num_nodes=5), 0, brute(scores, targets, [set()] * 2)),
    ):

        @jax.jit
        def rank(scores, targets, rows, graph):
            return rank_all(lambda ids: scores[:, ids], targets, 5, known=graph, rows=rows, chunk=2).rank

        np.testing.assert_array_equal(rank(scores, targets, np.full(2, row), graph), expected)


def test_no_chunk_size_changes_ranks_of_real_scores():
    """Two exact copies of each candidate: every target ties with its own copy, in whatever chunk it is."""
    random = np.random.default_rng(1)
    queries = jax.device_put(random.normal(size=(5, 16)).astype(np.float32))
    table = jax.device_put(np.tile(random.normal(size=(20, 16)).astype(np.float32), (2, 1)))
    targets = np.array([0, 7, 19, 20, 39], np.int32)

    def score(ids):  # elementwise: a sum in one order for every column
        return (queries[:, None] * table[ids][None]).sum(2)

    for chunk in (3, 8, 40):
        got = jax.jit(partial(rank_all, score, num_candidates=40, chunk=chunk))(targets)
        assert got.tied.tolist() == [1] * 5
        assert (np.asarray(got.above) % 2 == 0).all()


def test_memory_goes_with_the_chunk_and_not_with_the_candidates():
    def peak(num_candidates: int) -> int:
        arrays = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 8), (num_candidates, 8)))
        targets = jax.ShapeDtypeStruct((64,), jnp.int32)

        def run(queries, table, targets):
            return rank_all(lambda ids: queries @ table[ids].T, targets, num_candidates, chunk=128)

        return jax.jit(run).lower(*arrays, targets).compile().memory_analysis().temp_size_in_bytes

    small, large = peak(1_000), peak(1_000_000)
    assert large < 1.1 * small
    assert small < 8 * 64 * 128 * 4


def test_ranking_under_vmap():
    scores = integers(3, Q, N)
    targets = RNG.integers(0, N, (3, Q)).astype(np.int32)
    graph = from_edges(np.repeat(np.arange(0, N, 3), 2), np.tile([1, 2], 8), num_nodes=N)
    rows = RNG.integers(0, 3, (3, Q)).astype(np.int32)

    def one(scores, targets, rows):
        return rank_all(lambda ids: scores[:, ids], targets, N, known=graph, rows=rows, chunk=5)

    mapped = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(scores, targets, rows))
    for i in range(3):
        known = [set(range(0, N, 3)) if row else set() for row in rows[i].tolist()]
        np.testing.assert_array_equal(rank_of(mapped)[i], brute(scores[i], targets[i], known))


def test_bad_arguments_are_told():
    graph = from_edges([0], [1], num_nodes=2)
    targets = jnp.array([0, 1])
    with pytest.raises(ValueError, match="pass both known and rows"):
        rank_all(lambda ids: jnp.zeros((2, ids.shape[0])), targets, 4, known=graph)
    with pytest.raises(ValueError, match=r"at least 1, got 4 and 0"):
        rank_all(lambda ids: jnp.zeros((2, ids.shape[0])), targets, 4, chunk=0)
    with pytest.raises(ValueError, match=r"expected scores of 2 queries x 3 candidates, got shape \(3, 2\)"):
        rank_all(lambda ids: jnp.zeros((3, 2)), targets, 4, chunk=3)
    for metric in (
        lambda: hits(Ranks(targets, targets), 0),
        lambda: hits_above(jnp.ones(1), jnp.ones(1), 0),
        lambda: recall(Ranks(targets[None], targets[None]), jnp.ones((1, 2), bool), 0),
        lambda: ndcg(Ranks(targets[None], targets[None]), jnp.ones((1, 2)), 0),
    ):
        with pytest.raises(ValueError, match="k is the number of first places, at least 1, got 0"):
            metric()


def test_no_queries():
    got = rank_all(lambda ids: jnp.zeros((0, ids.shape[0])), jnp.zeros(0, jnp.int32), 4)
    assert got.rank.shape == (0,)
