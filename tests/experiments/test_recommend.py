"""Recommendation, run as its users run it on a small graph, and its parts against plain NumPy."""

import dataclasses
import json
from math import log2

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csr_matrix
from test_experiments import KEYS

from experiments.recommend import __main__ as recommend
from experiments.recommend import taste
from experiments.recommend.baselines import Factors, knn_factors, popularity, singular, svd_factors
from experiments.recommend.config import Config
from experiments.recommend.data import LEAST, Batch, as_graph, choose_relation, hold, load, split_items
from experiments.recommend.learners import SHARE, draw_items
from experiments.recommend.negatives import Scores, draw_hard, margin_loss, rank_items, softmax_loss
from experiments.recommend.neighborhoods import walk_blocks, with_items
from experiments.recommend.programs import rate
from experiments.recommend.taste import Interactions
from jsage.data import verify_split
from jsage.graph import bipartite_graph, edges, sort_rows
from jsage.sampling import LinkBatch

TINY = ("--fanouts", "4,4", "--width", "16", "--batch-size", "64", "--epochs", "12", "--lr", "0.03")


def small(num_users: int = 40, num_items: int = 30, size: int = 8, seed: int = 0) -> Interactions:
    """Users with `size` items each, but for the last two, who have two."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(num_items)[: size if user < num_users - 2 else 2] for user in range(num_users)]
    users = np.repeat(np.arange(num_users), [len(row) for row in rows])
    return Interactions(users, np.concatenate(rows), num_users, num_items)


def matrix(pairs: np.ndarray, data: Interactions) -> np.ndarray:
    dense = np.zeros((data.num_users, data.num_items))
    dense[pairs[:, 0], pairs[:, 1] - data.num_users] = 1
    return dense


@pytest.fixture(scope="module")
def typed(tmp_path_factory) -> str:
    """Two kinds of triples: type 1 joins users to users, type 0 those of three groups to their items."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(90), 8)
    items = 90 + users % 3 + 3 * np.concatenate([rng.permutation(16)[:8] for _ in range(90)])
    friends = rng.integers(0, 90, (2, 900))
    path = tmp_path_factory.mktemp("typed") / "graph.npz"
    np.savez(
        path,
        edge_index=np.concatenate([friends, np.stack([users, items]), np.stack([users, items])], axis=1),
        edge_type=np.repeat([1, 0], [900, 2 * len(users)]).astype(np.int16),
        meta=np.array(json.dumps({"nodes": 138})),
    )
    return str(path)


def run(*arguments: str, out) -> dict:
    assert recommend.run([*arguments, "--json", str(out / "result.json")]) == 0
    return json.loads((out / "result.json").read_text())


@pytest.mark.slow
def test_two_epochs_end_with_scores(typed, tmp_path):
    result = run("--dataset", typed, *TINY, "--epochs", "2", out=tmp_path)
    assert result.keys() == KEYS | {"scores"}
    assert (result["metric"], result["epochs"], result["traces"]) == ("ndcg@10", [2], 1)
    assert result["scores"]["GraphSAGE"].keys() == {"recall@10", "ndcg@10", "mrr"}


PINSAGE = ("--conv", "pinsage", "--neighborhoods", "items", "--loss", "margin", "--hard-negatives", "2")


@pytest.mark.slow
def test_pinsage_is_an_option(typed, tmp_path):
    more = ("--hard-ranks", "2,12", "--nearest", "20", "--epochs", "2")
    result = run("--dataset", typed, *TINY, *PINSAGE, *more, out=tmp_path)
    assert result.keys() == KEYS | {"scores"}
    assert (result["epochs"], result["traces"]) == ([2], 1)
    names = ["PinSage", "popularity", "SVD", "item kNN", "matrix factorization"]
    assert list(result["scores"]) == names
    assert all(np.isfinite(value) for row in result["scores"].values() for value in row.values())


@pytest.mark.slow
@pytest.mark.parametrize("conv", ["gcn", "pinsage"])
def test_tastes_are_found_along_walks(typed, tmp_path, conv):
    options = ("--conv", conv, "--neighborhoods", "walks", "--hard-negatives", "2", "--hard-ranks", "4,20")
    scores = run("--dataset", typed, *TINY, *options, out=tmp_path)["scores"]
    first, *rest = scores
    assert first == {"gcn": "GraphSAGE", "pinsage": "PinSage"}[conv]
    assert rest == ["popularity", "SVD", "matrix factorization"]
    assert scores[first]["ndcg@10"] > scores["popularity"]["ndcg@10"] + 0.1


@pytest.mark.slow
def test_tastes_are_found(typed, tmp_path, capsys):
    options = ("--dataset", typed, *TINY, "--runs", "2", "--save-every", "5")
    result = run(*options, "--out", str(tmp_path / "out"), out=tmp_path)
    assert result.keys() == KEYS | {"scores"}
    assert (result["metric"], result["runs"], result["traces"]) == ("ndcg@10", 2, 1)
    assert result["config"].keys() == {field.name for field in dataclasses.fields(Config)}
    names = {"popularity", "SVD", "matrix factorization"}
    assert set(result["baselines"]) == names
    assert set(result["scores"]) == {"GraphSAGE", *names}
    assert all(row.keys() == {"recall@10", "ndcg@10", "mrr"} for row in result["scores"].values())
    for metric, value in result["scores"]["GraphSAGE"].items():
        assert value > result["scores"]["popularity"][metric] + 0.1
    table = capsys.readouterr().out
    assert all(name in table for name in ("recall@10", "ndcg@10", "48 items", *names))
    for name in ("graphsage-0", "matrix-1"):
        assert (tmp_path / "out" / name / "tsne.png").read_bytes().startswith(b"\x89PNG")
    lines = (tmp_path / "out" / "graphsage-0" / "metrics.jsonl").read_text().splitlines()
    kept = [max(json.loads(line)["val_ndcg@10"] for line in lines)]
    lines = (tmp_path / "out" / "graphsage-1" / "metrics.jsonl").read_text().splitlines()
    kept.append(max(json.loads(line)["val_ndcg@10"] for line in lines))
    assert result["val_mean"] == pytest.approx(np.mean(kept))


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(typed, tmp_path):
    options = ("--dataset", typed, *TINY, "--save-every", "1")
    whole = run(*options, out=tmp_path)
    begun = ("--out", str(tmp_path / "out"))
    run(*options, *begun, "--epochs", "5", out=tmp_path)
    resumed = run(*options, *begun, "--resume", out=tmp_path)
    assert resumed["epochs"] == whole["epochs"]
    assert resumed["scores"] == whole["scores"]
    assert recommend.run([*options, *begun]) == 2  # not without --resume


def test_bad_input_is_one_line(typed, tmp_path, capsys):
    both = tmp_path / "both.npz"
    np.savez(both, edge_index=[[0, 1], [1, 0]], meta=json.dumps({"nodes": 2}))
    few = tmp_path / "few.npz"
    np.savez(few, edge_index=[[0, 1], [2, 3]], meta=json.dumps({"nodes": 4}))
    for arguments, word in (
        (("--dataset", "missing.npz"), "missing.npz"),
        (("--relation", "3"), "taste has none"),
        (("--dataset", typed, "--relation", "9"), "0 .. 1"),
        (("--dataset", typed, "--relation", "starring"), "starring"),
        (("--dataset", str(both)), "--relation"),
        (("--dataset", str(few)), f"{LEAST} items"),
        (("--dataset", typed, "--hard-negatives", "2", "--hard-ranks", "9,4"), "--hard-ranks"),
        (
            ("--dataset", typed, "--hard-negatives", "2", "--hard-ranks", "60,70"),
            "items at most, --hard-ranks begins at 60",
        ),
    ):
        assert recommend.run(list(arguments)) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert word in error
    for arguments in (("--width", "0"), ("--fanouts", "4,x"), ("--lr", "-1"), ("--resume",)):
        with pytest.raises(SystemExit) as stop:
            recommend.run(list(arguments))
        assert stop.value.code == 2


def test_taste_has_distinct_pairs_and_a_seed():
    data = taste.taste(60, 80, 900, seed=3)
    again, other = taste.taste(60, 80, 900, seed=3), taste.taste(60, 80, 900, seed=4)
    np.testing.assert_array_equal(data.items, again.items)
    assert not np.array_equal(data.items[:50], other.items[:50])
    assert (data.num_users, data.num_items) == (60, 80)
    assert len(set(zip(data.users.tolist(), data.items.tolist(), strict=True))) == len(data.users)
    size = np.bincount(data.users, minlength=60)
    assert size.min() >= 5
    assert abs(size.sum() - 900) < 60
    assert size.max() > 2 * np.median(size)  # some take many


def test_taste_draws_in_proportion_to_popularity_times_affinity():
    chance = taste.chances(np.random.default_rng(1), 4000, 30)
    np.testing.assert_allclose(chance.sum(1), 1, rtol=1e-9)
    # log (chance - 0.1 p) = log p + 5 cos + a number of the user: with p by Zipf's law, cos is in -1 .. 1.
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(12, 8))
    rows = [centres[rng.integers(0, 12, n)] + 0.5 * rng.normal(size=(n, 8)) for n in (4000, 30)]
    users, items = (part / np.linalg.norm(part, axis=1)[:, None] for part in rows)
    zipf = rng.permutation(1 / np.arange(1, 31))
    popular = zipf / zipf.sum()
    odds = np.log(chance - 0.1 * popular) - np.log(popular) - 5 * users @ items.T
    np.testing.assert_allclose(odds, np.broadcast_to(odds[:, :1], odds.shape), atol=1e-6)
    # First draws follow the chances: the sum over users of the counts less what is expected, by chi-square.
    data = taste.taste(4000, 30, 20_000, seed=1)
    first = data.items[np.flatnonzero(np.diff(data.users, prepend=-1))]
    count, expected = np.bincount(first, minlength=30), chance.sum(0)
    assert (
        (count - expected) ** 2 / expected
    ).sum() < 59.7  # 0.999 quantile at 30 degrees, and variance less


def test_a_split_takes_shares_of_each_user_and_leaks_nothing():
    data = small()
    split = split_items(data, seed=0)
    whole = np.stack([data.users, data.num_users + data.items], 1)
    verify_split(split, as_graph(whole, data))
    held = [np.bincount(part[:, 0], minlength=40) for part in (split.train, split.val, split.test)]
    assert [counts[:38].tolist() for counts in held] == [[5] * 38, [1] * 38, [2] * 38]
    assert [counts[38:].tolist() for counts in held] == [[2, 2], [0, 0], [0, 0]]  # too few: all of them train
    together = np.concatenate([split.train, split.val, split.test])
    assert set(map(tuple, together.tolist())) == set(map(tuple, whole.tolist()))
    assert not np.array_equal(split.test, split_items(data, seed=1).test)


def test_the_relation_is_the_largest_with_users_and_items_apart(typed):
    data = load(typed, None)
    assert (data.num_users, data.num_items, len(data.users)) == (
        90,
        48,
        720,
    )  # triples that repeat count once
    friends = load(typed, "1")
    assert max(friends.num_users, friends.num_items) <= 90
    heads, tails = np.array([0, 1, 2, 0, 1, 5]), np.array([1, 2, 0, 8, 9, 6])
    assert choose_relation(heads, tails, np.array([4, 4, 4, 7, 7, 2]), None) == 7


def test_popularity_counts_users():
    factors = popularity(bipartite_graph([0, 0, 1, 2], [1, 2, 1, 1], 3, 4), 3)
    np.testing.assert_array_equal(factors.users @ factors.items.T, [[0, 3, 1, 0]] * 3)


def test_svd_is_that_of_numpy():
    data = small()
    graph = as_graph(np.stack([data.users, data.num_users + data.items], 1), data)
    dense = matrix(np.stack([data.users, data.num_users + data.items], 1), data)
    left, values, right = np.linalg.svd(dense, full_matrices=False)
    for rank in (30, 29):
        found = singular(csr_matrix(dense), rank)
        np.testing.assert_allclose(found[1], values[:rank], rtol=1e-6, atol=1e-6)
        expected = (left[:, :rank] * values[:rank]) @ right[:rank]
        np.testing.assert_allclose((found[0] * found[1]) @ found[2].T, expected, atol=1e-6)
    all_factors = svd_factors(graph, 40, ranks=(3, 500))
    assert len(all_factors) == 6  # a rank above the matrix's is the matrix's
    factors = all_factors["plain, rank 3"]
    expected = (left[:, :3] * values[:3]) @ right[:3]
    np.testing.assert_allclose(factors.users @ factors.items.T, expected, atol=1e-4)
    sizes = np.outer(dense.sum(1) ** 0.5, np.maximum(dense.sum(0), 1) ** 0.5)
    full = all_factors["normalized, rank 30"]
    np.testing.assert_allclose(full.users @ full.items.T, dense / sizes, atol=1e-4)
    back = all_factors["normalized and back, rank 30"]
    np.testing.assert_allclose(back.users @ back.items.T, dense / dense.sum(1)[:, None] ** 0.5, atol=1e-4)


def test_nearest_items_are_those_of_numpy():
    data = small()
    pairs = np.stack([data.users, data.num_users + data.items], 1)
    dense = matrix(pairs, data)
    (factors,) = knn_factors(as_graph(pairs, data), 40, nearest=(4,)).values()
    common, length = dense.T @ dense, dense.sum(0)
    np.fill_diagonal(common, 0)
    expected = np.zeros((40, 30))
    for item in range(30):
        near = np.argsort(-common[item], kind="stable")[:4]
        near = near[common[item, near] > 0]
        share = common[item, near] / np.sqrt(length[item] * np.maximum(length[near], 1))
        expected[:, near] += dense[:, item, None] * share
    np.testing.assert_allclose(factors.users @ factors.items.T, expected, rtol=1e-5)


def test_items_read_those_that_share_users_and_users_their_items():
    data = small()
    pairs = np.stack([data.users, data.num_users + data.items], 1)
    dense, graph = matrix(pairs, data), with_items(as_graph(pairs, data), 40, 3)
    src, dst = (np.asarray(ends) for ends in edges(graph))
    weight, mine = np.asarray(graph.edge_data["weight"]), dst < 40
    assert set(zip(dst[mine], src[mine], strict=True)) == set(map(tuple, pairs))
    assert (weight[mine] == 1).all()
    common = dense.T @ dense
    np.fill_diagonal(common, 0)
    for item in range(30):
        row = dst == 40 + item
        counts = common[item, src[row] - 40]  # its own is 0, and comes where others are missing
        assert sorted(counts) == sorted(np.sort(common[item])[-3:])
        np.testing.assert_allclose(weight[row], counts / counts.mean(), rtol=1e-6)


def test_walks_see_no_pair_that_is_asked_for():
    # Users 0 and 1 both have item 3; user 0 alone has item 4, and it is asked for item 3.
    graph = sort_rows(bipartite_graph([0, 0, 1], [1, 2, 1], 2, 3))
    one = np.array([0], np.int32)
    pair = LinkBatch(one, one + 3, np.zeros(0, np.int32), np.array([True]))
    blocks, everyone = jax.jit(walk_blocks, static_argnames=("tops", "num_users"))(
        jax.random.key(0), graph, pair, tops=(2,), num_users=2
    )
    assert not everyone
    assert np.asarray(blocks[0].src).tolist() == [[4, 0], [3, 3]]
    assert np.asarray(blocks[0].edge_data["weight"]).tolist() == [[2, 0], [0, 0]]
    assert np.asarray(blocks[0].mask).all()


def test_hard_negatives_are_not_the_users_own_and_come_one_by_one():
    data = small()
    pairs = np.stack([data.users, data.num_users + data.items], 1)
    graph, own = as_graph(pairs, data), matrix(pairs, data) > 0
    config = Config(hard_negatives=3, hard_ranks=(1, 20))
    ranking = rank_items(jax.random.key(0), graph, 40, config)
    draw = jax.jit(lambda key, ranking, batch: draw_hard(key, ranking, batch, config))
    users, mask = np.arange(8, dtype=np.int32), np.arange(8) < 7
    for epoch, most in ((1, 0), (2, 1), (9, 3)):
        items, valid = map(
            np.asarray, draw(jax.random.key(epoch), ranking, Batch(users, mask, np.int32(epoch)))
        )
        assert valid.sum(1).tolist() == [most] * 7 + [0]
        row, column = np.nonzero(valid)
        assert not own[row, items[row, column] - 40].any()
    assert rank_items(jax.random.key(0), graph, 40, Config()) is None


def test_losses_are_those_of_lists():
    rng = np.random.default_rng(0)
    own, others, hard = (rng.normal(size=(3, size)).astype(np.float32) for size in (2, 5, 4))
    valid, kept, near = (rng.random(part.shape) < 0.7 for part in (own, others, hard))
    near[0] = False
    scores = Scores(own, (others, kept), (hard, near))
    soft = np.asarray(jax.jit(softmax_loss, static_argnums=2)(scores, valid, 20))
    wide = np.asarray(jax.jit(margin_loss, static_argnums=2)(scores, valid, 0.5))
    for (user, place), score in np.ndenumerate(own.astype(np.float64)):
        parts = others[user][kept[user]], hard[user][near[user]]
        total = 4 * np.exp(parts[0]).sum() + np.exp(parts[1]).sum()
        hinges = [np.maximum(0, part - score + 0.5).mean() for part in parts if len(part)]
        if valid[user, place]:
            assert soft[user, place] == pytest.approx(np.log1p(total / np.exp(score)), rel=1e-5)
            assert wide[user, place] == pytest.approx(np.sum(hinges), rel=1e-5, abs=1e-6)
    assert (soft[~valid] == 0).all()
    assert (wide[~valid] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
def test_metrics_are_those_of_sorted_lists(ties: bool):
    data = small()
    split = split_items(data, seed=0)
    rng = np.random.default_rng(5)
    users, items = rng.normal(size=(40, 4)).astype(np.float32), rng.normal(size=(30, 4)).astype(np.float32)
    if ties:
        items = items[np.arange(30) // 3]  # three items of one score
    known = np.concatenate([split.train, split.val])
    factors, held = (
        Factors(jnp.asarray(users), jnp.asarray(items)),
        hold(split.test, as_graph(known, data), 40),
    )
    found = rate(factors, held)
    if not ties:
        assert rate(factors, held, 30) == pytest.approx(found)
        short = rate(factors, held, 10)
        assert (short["ndcg@10"], short["recall@10"]) == pytest.approx((found["ndcg@10"], found["recall@10"]))
        assert short["mrr"] < found["mrr"]
    scores = users.astype(np.float64) @ items.T.astype(np.float64)
    seen, wanted = matrix(known, data) > 0, matrix(split.test, data) > 0
    recall, ndcg, reciprocal = [], [], []
    for user in np.flatnonzero(wanted.any(1)):
        runs = [one_order(scores[user], seen[user], wanted[user], rng) for _ in range(4000 if ties else 1)]
        recall.append(np.mean([sum(rank <= 10 for rank in ranks) / len(ranks) for ranks in runs]))
        best = sum(1 / log2(1 + rank) for rank in range(1, 1 + wanted[user].sum()))
        gains = [sum(1 / log2(1 + rank) for rank in ranks if rank <= 10) / best for ranks in runs]
        ndcg.append(np.mean(gains))
        reciprocal += list(1 / np.mean([sorted_by_item for sorted_by_item in runs], axis=0))
    tolerance = 4e-3 if ties else 1e-5
    assert found["recall@10"] == pytest.approx(np.mean(recall), abs=tolerance)
    assert found["ndcg@10"] == pytest.approx(np.mean(ndcg), abs=tolerance)
    assert found["mrr"] == pytest.approx(np.mean(reciprocal), abs=tolerance)


def one_order(scores: np.ndarray, seen: np.ndarray, wanted: np.ndarray, rng) -> list[int]:
    """The places, from 1, of the items wanted, in one order of those not seen; the tied in any order."""
    items = rng.permutation(np.flatnonzero(~seen))
    order = items[np.argsort(-scores[items].round(9), kind="stable")].tolist()
    return [1 + order.index(item) for item in np.flatnonzero(wanted)]


@pytest.mark.slow
def test_positives_are_drawn_evenly_and_a_quarter_at_most():
    graph = sort_rows(bipartite_graph([0] * 8 + [1], [*range(8), 3], 3, 9))
    users, mask = jnp.array([0, 1, 2, 0]), jnp.array([True, True, True, False])
    many = jax.vmap(draw_items, (0, None, None, None, None))
    items, valid = many(jax.random.split(jax.random.key(0), 4000), graph, users, mask, 4)
    assert valid.sum(2)[0].tolist() == [8 // SHARE, 1, 0, 0]
    assert np.all(np.asarray(valid) == np.asarray(valid)[:1])
    joined = set(zip(*(ends.tolist() for ends in edges(graph)), strict=True))
    pairs = np.stack(np.broadcast_arrays(items, users[None, :, None]), -1)[np.asarray(valid)]
    assert set(map(tuple, pairs.tolist())) <= joined
    count = np.bincount(np.asarray(items)[:, 0, :2].ravel() - 3, minlength=9)
    assert count[8] == 0
    assert ((count[:8] - 1000) ** 2 / 1000).sum() < 24.3  # 0.999 quantile of chi-square at 7 degrees
