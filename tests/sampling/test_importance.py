"""Importance by walks against the exact personalized PageRank in NumPy, and what is chosen by it."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import graph
from reference import filled
from scipy import stats

from jsage.graph import bipartite_graph, edges, from_edges, validate
from jsage.nn import GraphSAGE, PinSAGEConv
from jsage.sampling import (
    Ranking,
    count_visits,
    curriculum,
    hard_negatives,
    importance_blocks,
    importance_graph,
    importance_neighbors,
    positive_pairs,
    rank_neighbors,
    restart_visits,
    sample_blocks,
)

RESTART, NODES = 0.3, 8

quick = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
"""For programs that run once: compiled quickly rather than well."""


def chain(of, start: int) -> tuple[np.ndarray, np.ndarray]:
    """`(e, P)`: the start, and a step to a uniform in-neighbor, or to the start where there is none."""
    src, dst = (np.asarray(x) for x in edges(of))
    e, step = np.eye(of.num_nodes)[start], np.zeros((of.num_nodes,) * 2)
    np.add.at(step, (dst, src), 1.0)
    degree = step.sum(1, keepdims=True)
    return e, np.where(degree > 0, step / np.maximum(degree, 1), e)


def page_rank(of, start: int, restart: float = RESTART) -> np.ndarray:
    """The solution of `x = r e + (1 - r) x P`."""
    e, step = chain(of, start)
    return np.linalg.solve(np.eye(len(e)) - (1 - restart) * step.T, restart * e)


def after(of, start: int, length: int, restart: float = RESTART) -> np.ndarray:
    """The distribution after each of `length` steps."""
    e, step = chain(of, start)
    x, out = e, []
    for _ in range(length):
        x = restart * e + (1 - restart) * x @ step
        out.append(x)
    return np.array(out)


@partial(quick, static_argnames=("walks", "length"))
def visits(key, of, starts, walks: int, length: int):
    return restart_visits(key, of, starts, walks=walks, length=length, restart=RESTART)


def shares(nodes) -> np.ndarray:
    """Each row's shares of visits."""
    nodes = np.asarray(nodes)
    return np.stack([np.bincount(row, minlength=NODES) / len(row) for row in nodes])


@pytest.mark.parametrize("of", ["random", "isolated nodes"])
def test_visits_have_the_distribution_of_the_chain(of: str):
    """One visit a walk, the last: independent draws. `isolated nodes` has nodes that walks cannot leave."""
    g, length, walks = graph(of), 12, 20_000
    nodes, mask = visits(jax.random.key(0), g, np.array([1, 0], np.int32), walks=walks, length=length)
    assert np.asarray(mask).all()
    for row, start in zip(np.asarray(nodes).reshape(2, walks, length), (1, 0), strict=True):
        expected = after(g, start, length)[-1]
        count = np.bincount(row[:, -1], minlength=NODES)
        assert not count[expected == 0].any()
        reached = expected > 0
        assert stats.chisquare(count[reached], expected[reached] * walks).pvalue > 1e-3


def test_shares_of_visits_converge_to_personalized_page_rank_like_the_root_of_the_walks():
    g, length, repeats = graph("random"), 20, 200
    starts = np.full(repeats, 2, np.int32)
    expected = after(g, 2, length).mean(0)
    error = {}
    for walks in (4, 16, 64):
        nodes, _ = visits(jax.random.key(walks), g, starts, walks=walks, length=length)
        error[walks] = np.sqrt(((shares(nodes) - expected) ** 2).mean())
    assert error[4] / error[16] == pytest.approx(2, rel=0.12)
    assert error[16] / error[64] == pytest.approx(2, rel=0.12)
    exact = page_rank(g, 2)
    assert np.abs(expected - exact).sum() < 2 / (RESTART * length)  # the documented bias ...
    together = np.asarray(visits(jax.random.key(1), g, starts, walks=64, length=80)[0])
    np.testing.assert_allclose(shares(together).mean(0), exact, atol=1e-2)  # ... goes with the length
    assert exact.max() > 0.3


def reference(nodes, mask, top: int) -> Ranking:
    """Counts by a dictionary, sorted by `(-count, id)`."""
    out = [np.zeros((len(nodes), top), np.int32) for _ in range(2)]
    for i, (row, valid) in enumerate(zip(np.asarray(nodes), np.asarray(mask), strict=True)):
        best = sorted(Counter(row[valid].tolist()).items(), key=lambda item: (-item[1], item[0]))[:top]
        for j, (node, count) in enumerate(best):
            out[0][i, j], out[1][i, j] = node, count
    return Ranking(out[0], out[1], out[1] > 0)  # pyright: ignore[reportArgumentType]


def same(a, b) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("top", [1, 3, 30, 35])
def test_counts_are_those_of_a_dictionary_whatever_is_in_the_padding(top: int):
    rng = np.random.default_rng(0)
    nodes = rng.integers(0, 9, (40, 30), np.int32) * 2**27 + 2**30 - 2  # beyond what floats can tell apart
    nodes[0] = 5
    mask = rng.random((40, 30)) < rng.random((40, 1))
    mask[1] = False
    counted = jax.jit(partial(count_visits, top=top))
    for junk in (0, 5, -1, 2**31 - 1):
        same(counted(np.where(mask, nodes, junk), mask), reference(nodes, mask, top))


@quick
def everything(key, of, seeds):
    """Visits, and what is made of them for all nodes and for even ones."""
    visit = partial(restart_visits, walks=6, length=5, restart=RESTART)
    found = [
        (
            rank_neighbors(key, of, seeds, 4, visit=visit, keep=keep),
            importance_neighbors(key, of, seeds, 4, visit=visit, keep=keep),
        )
        for keep in (None, even)
    ]
    return visit(key, of, seeds), found


def even(nodes):
    return nodes % 2 == 0


@pytest.mark.parametrize("of", ["random", "isolated nodes", "no edges"])
def test_the_top_are_the_most_visited_without_the_start(of: str):
    seeds = np.array([3, 0, 1, 7, 0], np.int32)
    (nodes, mask), found = jax.tree.map(np.asarray, everything(jax.random.key(3), graph(of), seeds))
    mask = mask & (nodes != seeds[:, None])
    for kept, (ranked, block) in zip((mask, mask & even(nodes)), found, strict=True):
        same(ranked, reference(nodes, kept, 4))
        same((block.dst, block.mask), (seeds, ranked.mask))
        same(block.src, np.where(ranked.mask, ranked.node, seeds[:, None]))
        share = np.asarray(ranked.visits) / np.maximum(ranked.visits.sum(1, keepdims=True), 1)
        np.testing.assert_allclose(block.edge_data["weight"], share, rtol=1e-6)


def test_many_walks_find_the_top_of_the_exact_ranking():
    g = graph("random")
    visit = partial(restart_visits, walks=2000, length=40, restart=RESTART)
    rank = quick(partial(rank_neighbors, top=3, visit=visit))
    found = rank(jax.random.key(5), g, np.array([2], np.int32))
    exact = page_rank(g, 2)
    exact[2] = 0
    best = np.sort(exact)[::-1]
    assert (best[:3] - best[1:4] > 5e-3).all()  # gaps that the noise does not close
    assert np.asarray(found.node)[0].tolist() == np.argsort(-exact)[:3].tolist()


def test_walks_without_restart_from_another_function():
    @quick
    def both(key, of, seeds):
        return rank_neighbors(key, of, seeds, 3, visit=positive_pairs), positive_pairs(key, of, seeds)

    found, visited = both(jax.random.key(0), graph("random"), np.array([2, 4]))
    same(found, reference(*visited, 3))


def shop():
    """Ten users and six items; the last item has no user."""
    rng = np.random.default_rng(0)
    return bipartite_graph(rng.integers(0, 10, 40), rng.integers(0, 5, 40), 10, 6)


def items(nodes):
    return nodes >= 10


@pytest.mark.slow
def test_blocks_are_read_by_a_model_and_nothing_else_is():
    g, traces = shop(), []
    visit = partial(restart_visits, walks=3, length=6, restart=RESTART)
    model = GraphSAGE(hidden=4, out=3, conv=PinSAGEConv)
    seeds = jax.device_put(np.array([10, 15, 12], np.int32))
    table = np.random.default_rng(1).normal(size=(16, 5)).astype(np.float32)
    table[:10] = np.nan  # users, which `keep` leaves out

    def loss(params, key, g, table):
        blocks = importance_blocks(key, g, seeds, (3, 4), visit=visit, keep=items)
        hop = importance_neighbors(jax.random.fold_in(key, 0), g, seeds, 3, visit=visit, keep=items)
        out = model.apply(params, table, blocks)
        return (out**2 * jnp.arange(3.0)[None]).sum(), (out, blocks, hop)

    @quick
    def step(params, key, g, table):
        traces.append(1)
        return jax.value_and_grad(loss, has_aux=True)(params, key, g, table)

    blocks = jax.eval_shape(
        partial(importance_blocks, tops=(3, 4), visit=visit, keep=items), jax.random.key(0), g, seeds
    )
    params = filled(jax.eval_shape(model.init, jax.random.key(0), table, blocks))
    for seed in range(3):
        (_, (out, blocks, hop)), grads = step(params, jax.random.key(seed), g, table)
        assert out.shape == (3, 3)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((out, grads)))
        first, last = blocks
        assert (first.num_dst, first.src.shape, last.mask.shape) == (12, (12, 4), (3, 3))
        same(np.asarray(first.dst)[:3], seeds)
        assert not np.asarray(last.mask)[1].any()  # the item without users
        weight = np.asarray(last.edge_data["weight"])
        np.testing.assert_allclose(weight.sum(1), np.asarray(last.mask).any(1), rtol=1e-6)
        same((last.mask, last.edge_data), (hop.mask, hop.edge_data))
        same(np.asarray(first.dst)[3:], np.asarray(hop.src).ravel())
    assert len(traces) == 1


@pytest.mark.parametrize(("of", "chunk"), [("random", 3), ("no edges", 100)])
def test_ahead_of_time_is_the_batch_of_each_chunk(of: str, chunk: int):
    g, key = graph(of), jax.random.key(7)
    visit = partial(restart_visits, walks=4, length=5, restart=RESTART)
    found = importance_graph(key, g, 4, visit=visit, chunk=chunk)
    validate(found)
    assert found.num_nodes == NODES
    batch = quick(partial(importance_neighbors, top=4, visit=visit))
    size, indptr, indices = min(chunk, NODES), np.asarray(found.indptr), np.asarray(found.indices)
    for number in range(-(-NODES // size)):
        nodes = np.minimum(number * size + np.arange(size, dtype=np.int32), NODES - 1)
        block = batch(jax.random.fold_in(key, number), g, nodes)
        for i, v in enumerate(range(number * size, min((number + 1) * size, NODES))):
            valid, row = np.asarray(block.mask)[i], slice(*indptr[v : v + 2].tolist())
            same(indices[row], np.asarray(block.src)[i][valid])
            weight, wanted = (np.asarray(edges.edge_data["weight"]) for edges in (found, block))
            same(weight[row], wanted[i][valid])
    assert (found.num_edges > 0) == (of == "random")


def test_sampling_works_on_an_importance_graph():
    found = importance_graph(jax.random.key(7), graph("random"), 4)
    nodes = np.arange(NODES, dtype=np.int32)
    (block,) = quick(partial(sample_blocks, fanouts=(4,)))(jax.random.key(0), found, nodes)
    mask = np.asarray(block.mask)
    same(mask.sum(1), np.diff(found.indptr))
    weight = np.asarray(block.edge_data["weight"]) * mask
    np.testing.assert_allclose(weight.sum(1), np.diff(found.indptr) > 0, rtol=1e-6)


def test_a_graph_without_nodes():
    assert importance_graph(jax.random.key(0), from_edges([], [], 0), 3).num_nodes == 0


ROWS, TOP, LOW, HIGH, COUNT = 6000, 20, 5, 15, 3


def ranking() -> tuple[Ranking, np.ndarray]:
    """Shuffled nodes, rows of all lengths, with junk in the padding; and some positives of each row."""
    rng = np.random.default_rng(0)
    node = rng.permuted(np.broadcast_to(np.arange(100, 100 + TOP, dtype=np.int32), (ROWS, TOP)), axis=1)
    mask = np.arange(TOP) < (np.arange(ROWS) % (TOP + 1))[:, None]
    positives = np.take_along_axis(node, rng.integers(0, TOP, (ROWS, 4)), 1)
    positives[::2, 1:] = -1
    node = np.where(mask, node, positives[:, :1])
    counts = np.where(mask, TOP - np.arange(TOP, dtype=np.int32), 0)
    return Ranking(*map(jax.device_put, (node, counts, mask))), positives


@pytest.fixture(scope="module")
def drawn():
    ranked, positives = ranking()
    draw = jax.jit(partial(hard_negatives, count=COUNT, ranks=(LOW, HIGH)))
    return ranked, positives, *map(np.asarray, draw(jax.random.key(0), ranked, positives))


def candidates(ranked: Ranking, positives, row: int) -> list[int]:
    node, mask = np.asarray(ranked.node)[row], np.asarray(ranked.mask)[row]
    return [int(v) for v in node[LOW:HIGH][mask[LOW:HIGH]] if v not in positives[row]]


def test_hard_negatives_are_of_their_ranks_distinct_and_never_positive(drawn):
    ranked, positives, nodes, mask = drawn
    assert nodes.shape == mask.shape == (ROWS, COUNT)
    for row in range(ROWS):
        got, allowed = nodes[row][mask[row]], candidates(ranked, positives, row)
        assert len(got) == min(COUNT, len(allowed)) == len(set(got.tolist()) & set(allowed))
    assert (nodes[~mask] == 0).all()
    assert 0 < mask.mean() < 1


def test_positives_may_be_left_out_by_the_mask(drawn):
    ranked, positives, nodes, mask = drawn
    own = (np.asarray(ranked.node)[:, :, None] == positives[:, None]).any(2)
    without = ranked._replace(mask=np.asarray(ranked.mask) & ~own)
    draw = jax.jit(partial(hard_negatives, positives=None, count=COUNT, ranks=(LOW, HIGH)))
    for got, expected in zip(draw(jax.random.key(0), without), (nodes, mask), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_every_candidate_is_equally_likely(drawn):
    ranked, positives, nodes, mask = drawn
    places = []
    for row in range(ROWS):
        allowed = candidates(ranked, positives, row)
        if len(allowed) == 8:
            places += [allowed.index(v) for v in nodes[row][mask[row]]]
    assert len(places) > 1000
    inclusions = np.bincount(places, minlength=8)
    p, draws = COUNT / 8, len(places) / COUNT
    chi2 = ((inclusions - draws * p) ** 2).sum() / (draws * p * (1 - p)) * 7 / 8
    assert stats.chi2.sf(chi2, 7) > 1e-3


def test_hard_negatives_from_walks_and_the_curriculum_in_one_trace():
    g, traces = graph("one hub"), []
    visit = partial(restart_visits, walks=40, length=20, restart=RESTART)
    seeds = jax.device_put(np.array([0, 3], np.int32))

    @quick
    def draw(key, epoch):
        traces.append(1)
        ranked = rank_neighbors(key, g, seeds, 7, visit=visit)
        nodes, mask = hard_negatives(key, ranked, jnp.array([[1], [0]]), 4, ranks=(2, 7))
        return ranked.node, nodes, mask & curriculum(epoch, 4)[None]

    for epoch in range(1, 8):
        order, nodes, mask = map(np.asarray, draw(jax.random.key(epoch), epoch))
        for row in range(2):
            valid = nodes[row][mask[row]]
            assert len(valid) == min(epoch - 1, 4)
            assert set(valid) <= set(order[row, 2:7]) - {[1, 0][row], int(seeds[row])}
    assert len(traces) == 1


def test_the_curriculum_adds_one_hard_negative_an_epoch():
    valid = np.stack([curriculum(epoch, 6) for epoch in range(1, 10)])
    np.testing.assert_array_equal(valid, np.arange(6) < np.arange(9)[:, None])
    assert np.asarray(jax.jit(curriculum, static_argnums=1)(jnp.int32(4), 6)).sum() == 3


@pytest.mark.slow
def test_bad_settings_are_refused():
    g, key, seeds = graph("random"), jax.random.key(0), jnp.array([0])
    with pytest.raises(ValueError, match="walks is the number of walks from each start, at least 1, got 0"):
        restart_visits(key, g, seeds, walks=0)
    with pytest.raises(ValueError, match="top is a number of neighbors, at least 1, got 0"):
        count_visits(jnp.array([[1]]), jnp.array([[True]]), 0)
    with pytest.raises(ValueError, match="chunk is a number of nodes, at least 1, got 0"):
        importance_graph(key, g, 3, chunk=0)
    ranked = Ranking(jnp.arange(1, 6)[None], jnp.ones((1, 5), jnp.int32), jnp.ones((1, 5), bool))
    with pytest.raises(ValueError, match=r"0 <= low < high <= 5, .* got \(2, 6\): rank more nodes"):
        hard_negatives(key, ranked, jnp.array([[1]]), 2, ranks=(2, 6))
    with pytest.raises(ValueError, match="number of hard negatives of a row, at least 1, got 0"):
        hard_negatives(key, ranked, jnp.array([[1]]), 0, ranks=(2, 4))
