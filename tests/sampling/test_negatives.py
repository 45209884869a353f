"""Negatives: tables that hold the weights exactly, draws by chi-square, and no true edge among them."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import AWKWARD, NUM_NODES
from scipy import stats

from jsage.graph import (
    Graph,
    add_self_loops,
    bipartite_graph,
    edges,
    from_edges,
    has_edge,
    node_sides,
    sort_rows,
)
from jsage.sampling.negatives import (
    AliasTable,
    alias_table,
    by_degree,
    by_side,
    choice,
    corrupt,
    exclude_edges,
    in_batch,
    resample,
    sample_alias,
    uniform,
)

DRAWS, ONE = 200_000, 2**32
WEIGHTS = {
    "equal": np.ones(7),
    "one": np.array([3.0]),
    "one of many": np.eye(9)[4],
    "zeros among them": np.array([0, 0.5, 0, 0, 2, 7, 0.25]),
    "ties": np.array([1, 0, 3, 4, 0, 2, 2, 0, 4, 4]) / 2.0,
    "thirds": np.array([1, 1, 1, 4, 2]) / 3,
    "heavy tail": np.random.default_rng(0).pareto(1.0, 5000),
    "degrees": np.random.default_rng(1).zipf(1.7, 3000).clip(0, 10**6) ** 0.75,
    "far apart": np.array([1e-30, 1e30, 1.0, 1e29]),
    "float32": np.random.default_rng(2).random(1000).astype(np.float32),
}
SAMPLERS = {
    "uniform": (uniform(5), np.ones(5)),
    "uniform from an id on": (uniform(4, start=6), np.r_[np.zeros(6), np.ones(4)]),
    "weights": (alias_table([1, 0, 2, 4]), np.array([1, 0, 2, 4])),
    "choice": (choice([9, 2, 4]), np.eye(10)[[9, 2, 4]].sum(0)),
    "choice, weights": (
        choice(np.array([9, 2, 4]), np.array([5.0, 0.0, 1.0])),
        5 * np.eye(10)[9] + np.eye(10)[4],
    ),
}
Sampler = Callable[[jax.Array, tuple[int, ...]], jax.Array]


@jax.jit
def many(key: jax.Array, sampler: Sampler) -> jax.Array:
    return sampler(key, (DRAWS // 10, 10))


def fits(ids: np.ndarray, weights: np.ndarray) -> bool:
    """Whether ids come in proportion to weights: chi-square, and none at all where the weight is 0."""
    counts = np.bincount(np.asarray(ids).ravel(), minlength=len(weights))
    assert len(counts) == len(weights)
    assert (counts[weights == 0] == 0).all()
    some = weights > 0
    expected = counts.sum() * weights[some] / weights.sum()
    return some.sum() == 1 or stats.chisquare(counts[some], expected).pvalue > 1e-3


def shares(table: AliasTable) -> np.ndarray:
    """How many of the `n · 2^32` equally likely pairs of a slot and a word give each id."""
    alias = np.asarray(table.alias)
    keep = np.asarray(table.keep).astype(np.int64)
    total = keep.copy()
    np.add.at(total, alias, ONE - keep)
    return total


@pytest.mark.parametrize("name", WEIGHTS)
def test_an_alias_table_holds_the_weights(name: str):
    weights = WEIGHTS[name].astype(np.float64)
    table = alias_table(WEIGHTS[name])
    total = shares(table)
    n = len(weights)
    assert total.sum() == n * ONE
    wanted = weights / weights.sum() * n * ONE  # beyond 2^53 floats round, by less than their share of 2^-52
    assert (np.abs(total - wanted) <= 2 + wanted * 2**-50).all()
    assert (total[weights == 0] == 0).all()
    usual = weights > weights.mean() / 1000
    np.testing.assert_allclose(total[usual] / (n * ONE), (weights / weights.sum())[usual], rtol=2**-20)


def test_weights_that_divide_are_held_exactly():
    weights = np.random.default_rng(3).multinomial(
        2**20 * 64, np.random.default_rng(4).dirichlet(np.ones(64))
    )
    np.testing.assert_array_equal(shares(alias_table(weights)), weights * (ONE >> 20))


@pytest.mark.parametrize("power", [0.75, 1.0, 0.0])
def test_draws_by_degree(power: float):
    rng = np.random.default_rng(5)
    src, dst = rng.integers(0, 40, 3000), (40 * rng.random(3000) ** 3).astype(int)
    graph = from_edges(src, np.where(dst == 7, 8, dst), num_nodes=41)  # 7 and 40 have no edges
    degree = np.diff(np.asarray(graph.indptr))
    weights = np.where(degree > 0, degree.clip(1) ** power, float(power == 0))
    assert fits(many(jax.random.key(0), by_degree(graph, power)), weights)
    listed = np.array([1, 30, 3, 7])
    some = np.zeros(41)
    some[listed] = weights[listed]
    assert fits(many(jax.random.key(1), by_degree(graph, power, nodes=listed)), some[:31])


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_draw_in_proportion(name: str):
    sampler, weights = SAMPLERS[name]
    ids = many(jax.random.key(2), sampler)
    assert ids.dtype == jnp.int32
    assert ids.shape == (DRAWS // 10, 10)
    assert fits(np.asarray(ids), weights.astype(float))
    pairs = np.asarray(ids).reshape(-1, 2) @ np.array([len(weights), 1])  # and independently
    assert fits(pairs, np.outer(weights, weights).ravel().astype(float))


def test_a_node_is_drawn_from_the_side_of_the_one_that_it_stands_for():
    """All sides in one program, evenly and by weights: a side of one node, one without weights, any order."""
    sides, traces = np.array([1, 0, 1, 3, 0, 1, 3, 2]), []

    @jax.jit
    def draw(key, sampler):
        traces.append(1)
        return sampler(key, (DRAWS // 8, 8), like=jnp.arange(8))

    for weights in (None, np.array([1, 2, 0, 0, 3, 5, 0, 1])):
        drawn = np.asarray(draw(jax.random.key(8), by_side(sides, weights)))
        for node, ids in enumerate(drawn.T):
            wanted = (sides == sides[node]) * (np.ones(8) if weights is None else weights)
            wanted = wanted if wanted.any() else (sides == sides[node]) * 1.0
            assert fits(ids, wanted), node
        assert fits(drawn[:, 0] * 8 + drawn[:, 5], _outer(sides, weights))  # and independently
    assert len(traces) == 1


def _outer(sides: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    wanted = (sides == 1) * (np.ones(8) if weights is None else weights)
    return np.outer(wanted, wanted).ravel()


def test_no_negative_of_a_graph_of_users_and_items_joins_two_of_one_side():
    users, items = np.random.default_rng(9).integers(0, (6, 5), (18, 2)).T
    graph = sort_rows(bipartite_graph(users, items, num_users=6, num_items=5))
    src, dst = (jnp.asarray(ends) for ends in edges(graph))
    sampler = by_side(node_sides(graph))

    @jax.jit
    def draw(key, sampler):
        shape, near = (len(src), 300), partial(sampler, like=dst[:, None])
        first, again = jax.random.split(key)
        return exclude_edges(again, graph, src, near(first, shape), near)

    nodes, mask = (np.asarray(array) for array in draw(jax.random.key(9), sampler))
    known = set(zip(src.tolist(), dst.tolist(), strict=True))
    for u, v, row, valid in zip(src.tolist(), dst.tolist(), nodes, mask, strict=True):
        free = [w for w in range(11) if (w < 6) == (v < 6) and (u, w) not in known]
        if not free:
            assert not valid.any()
            continue
        assert fits(row[valid], np.eye(11)[free].sum(0))


@pytest.mark.parametrize(
    ("sides", "weights", "message"),
    [
        ([], None, r"one side and one weight a node, got \(0,\)"),
        ([0, 1], [1.0], r"one side and one weight a node, got \(2,\) and \(1,\)"),
        ([0, -1], None, "sides must be sides in"),
        ([0, 1], [1.0, -1.0], "weights must be finite, at least 0"),
    ],
)
def test_sides_that_are_refused(sides, weights, message):
    with pytest.raises(ValueError, match=message):
        by_side(sides, weights)


def test_ids_beyond_what_floats_can_count():
    ids = np.asarray(many(jax.random.key(3), uniform(2**30 - 5, start=2**30)), np.int64)
    assert fits(ids % 64, np.ones(64))
    assert fits((ids - 2**30) * 64 // (2**30 - 5), np.ones(64))
    n = 2**24 + 64
    table = AliasTable(jax.device_put(np.zeros(n, np.uint32)), jax.device_put(np.arange(n, dtype=np.int32)))
    assert fits(np.asarray(many(jax.random.key(4), table)) % 64, np.ones(64))


def test_samplers_are_arguments_of_one_trace():
    traces = []

    @jax.jit
    def step(key, sampler):
        traces.append(1)
        return sampler(key, (50,))

    drawn = [step(jax.random.key(5), alias_table(np.eye(4)[i])) for i in range(4)]
    assert [np.unique(ids).tolist() for ids in drawn] == [[0], [1], [2], [3]]
    assert [np.asarray(step(jax.random.key(5), uniform(1, start=i)))[0] for i in (3, 8)] == [3, 8]
    assert len(traces) == 2


def test_in_batch_negatives_are_no_pairs_of_the_batch():
    rng = np.random.default_rng(6)
    src, dst, mask = rng.integers(0, 6, 24), rng.integers(0, 9, 24), rng.random(24) < 0.8
    pairs = {(u, v) for u, v, valid in zip(src, dst, mask, strict=True) if valid}
    wanted = [[mask[i] and mask[j] and (src[i], dst[j]) not in pairs for j in range(24)] for i in range(24)]
    query = jax.jit(in_batch)
    got = np.asarray(query(src, dst, mask))
    np.testing.assert_array_equal(got, wanted)
    assert got.any()
    assert not got.diagonal().any()
    other = np.where(mask, src, -7), np.where(mask, dst, 2**31 - 1)  # what padding holds does not matter
    np.testing.assert_array_equal(query(*other, mask), wanted)


@pytest.mark.parametrize("ends", ["source", "target", "both"])
def test_corruptions_replace_one_end(ends: str):
    src, dst = np.array([0, 1, 2], np.int32), np.array([0, 4, 2], np.int32)
    samplers = {"source": uniform(3, start=10), "target": uniform(4, start=20)}
    given = samplers if ends == "both" else {ends: samplers[ends]}
    query = jax.jit(lambda key, src, dst: corrupt(key, src, dst, 20_000, **given))
    new_src, new_dst = map(np.asarray, query(jax.random.key(7), src, dst))
    assert new_src.shape == new_dst.shape == (3, 20_000)
    left, right = new_src != np.asarray(src)[:, None], new_dst != np.asarray(dst)[:, None]
    assert (left ^ right).all()
    if left.any():
        assert fits(new_src[left] - 10, np.ones(3))
    if right.any():
        assert fits(new_dst[right] - 20, np.ones(4))
    chance = {"source": 1.0, "target": 0.0, "both": 0.5}[ends]
    assert stats.binomtest(int(left.sum()), left.size, chance).pvalue > 1e-3


def adjacency(graph: Graph) -> np.ndarray:
    table = np.zeros((graph.num_nodes,) * 2, bool)
    table[
        np.asarray(graph.indices), np.repeat(np.arange(graph.num_nodes), np.diff(np.asarray(graph.indptr)))
    ] = True
    return table


@pytest.mark.parametrize("name", ["isolated nodes", "one hub", "random"])
def test_what_is_left_is_uniform_over_non_edges(name: str):
    graph = sort_rows(add_self_loops(from_edges(*AWKWARD[name])))
    edge, num = adjacency(graph), 25_000
    src = np.arange(NUM_NODES, dtype=np.int32)
    first = jax.jit(lambda key: uniform(NUM_NODES)(key, (NUM_NODES, num)))(jax.random.key(8))
    exclude = jax.jit(exclude_edges, static_argnames="tries")
    for tries in (0, 3):
        ids, mask = map(
            np.asarray, exclude(jax.random.key(9), graph, src, first, uniform(NUM_NODES), tries=tries)
        )
        for row in range(NUM_NODES):
            valid = ids[row][mask[row]]
            assert not edge[row][valid].any()
            if edge[row].all():
                assert valid.size == 0
            else:
                assert fits(valid, (~edge[row]).astype(float))
            stays = edge[row].mean() ** (tries + 1)  # every draw an edge
            assert stats.binomtest(int((~mask[row]).sum()), num, stays).pvalue > 1e-3
        untouched = ~edge[np.arange(NUM_NODES)[:, None], np.asarray(first)]
        np.testing.assert_array_equal(ids[untouched], np.asarray(first)[untouched])


@pytest.mark.slow
def test_exclusion_keeps_the_samplers_own_distribution():
    graph, weights = sort_rows(from_edges(*AWKWARD["random"])), np.arange(NUM_NODES, dtype=float)
    sampler, src = alias_table(weights), np.array([3], np.int32)
    first = jax.jit(lambda key: sampler(key, (1, DRAWS)))(jax.random.key(10))
    exclude = jax.jit(exclude_edges, static_argnames="tries")
    ids, mask = exclude(jax.random.key(11), graph, src, first, sampler, tries=20)
    assert fits(np.asarray(ids)[np.asarray(mask)], weights * ~adjacency(graph)[3])


def test_corrupted_triples_are_no_facts():
    """One graph a relation; a negative is wrong if its own relation holds it."""
    rng = np.random.default_rng(12)
    facts = rng.integers(0, NUM_NODES, (2, 20, 2))  # [relation, fact, end]
    graphs = tuple(sort_rows(from_edges(*pairs.T, NUM_NODES)) for pairs in facts)
    relation = np.repeat([0, 1], 20).astype(np.int32)
    src, dst = (jax.device_put(facts[:, :, end].ravel().astype(np.int32)) for end in (0, 1))

    def propose(key):
        return corrupt(key, src, dst, 300, source=uniform(NUM_NODES), target=uniform(NUM_NODES))

    def is_fact(pair):
        of = jnp.broadcast_to(relation[:, None], pair[0].shape)
        return jnp.where(of == 0, has_edge(graphs[0], *pair), has_edge(graphs[1], *pair))

    (new_src, new_dst), mask = jax.jit(
        lambda key: resample(jax.random.fold_in(key, 1), propose(key), propose, is_fact, tries=12)
    )(jax.random.key(13))
    edge = np.stack([adjacency(graph) for graph in graphs])
    new_src, new_dst, mask = map(np.asarray, (new_src, new_dst, mask))
    held = edge[relation[:, None], new_src, new_dst]
    np.testing.assert_array_equal(held, ~mask)
    assert mask.mean() > 0.99
    assert ((new_src == np.asarray(src)[:, None]) | (new_dst == np.asarray(dst)[:, None])).all()


@pytest.mark.slow
def test_exclusion_under_vmap_and_in_one_trace():
    graph, traces = sort_rows(from_edges(*AWKWARD["random"])), []
    src = jax.device_put(np.arange(NUM_NODES, dtype=np.int32))

    def negatives(key, graph):
        traces.append(1)
        first = uniform(NUM_NODES)(key, (NUM_NODES, 3))
        return exclude_edges(jax.random.fold_in(key, 1), graph, src, first, uniform(NUM_NODES), tries=2)

    one, mapped = jax.jit(negatives), jax.jit(jax.vmap(negatives, in_axes=(0, None)))
    keys = jax.random.split(jax.random.key(14), 4)
    ids, mask = map(np.asarray, mapped(keys, graph))
    for row, key in enumerate(keys):
        for got, wanted in zip((ids, mask), one(key, graph), strict=True):
            np.testing.assert_array_equal(got[row], wanted)
    assert len(traces) == 2


def test_no_implicit_promotion(strict_dtypes):
    graph, key = sort_rows(from_edges(*AWKWARD["random"])), jax.random.key(0)
    src = jnp.zeros(4, jnp.int32)
    for sampler, _ in SAMPLERS.values():
        first, _ = jax.eval_shape(lambda key, s=sampler: corrupt(key, src, src, 3, source=s, target=s), key)
        assert first.dtype == jnp.int32
    ids, mask = jax.eval_shape(
        lambda key: exclude_edges(key, graph, src, jnp.zeros((4, 2), jnp.int32), uniform(3)), key
    )
    assert (ids.dtype, mask.dtype) == (jnp.int32, jnp.bool_)
    assert jax.eval_shape(in_batch, src, src, src > 0).shape == (4, 4)
    assert jax.eval_shape(lambda key: sample_alias(key, alias_table([1.0]), ()), key).shape == ()


def test_bad_input_is_refused():
    for weights in ([-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0], [0.0, 0.0]):
        with pytest.raises(ValueError, match="weights must be finite, at least 0 and not all 0, got"):
            alias_table(weights)
    for weights in ([], np.ones((2, 2))):
        with pytest.raises(ValueError, match="one list of at least one number, got shape"):
            alias_table(weights)
    with pytest.raises(ValueError, match="where no node has an edge, draw with uniform"):
        by_degree(from_edges([], [], num_nodes=3))
    for size, start in ((0, 0), (3, -1), (2, 2**31 - 2)):
        with pytest.raises(ValueError, match=f"at least one, got {size} of them from {start} on"):
            uniform(size, start=start)
    with pytest.raises(ValueError, match="nodes must list at least one node, got none"):
        choice([])
    for bad, message in (
        ([4, -1], "nodes must be node ids in 0 .. 2147483647, got -1"),
        (np.array([0.5]), "nodes must hold integers, got float64"),
        (np.array([[1]]), r"nodes must have one axis, got shape \(1, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            choice(bad)
    with pytest.raises(ValueError, match=r"expected one weight a node, 2, got shape \(3,\)"):
        choice([1, 2], [1.0, 1.0, 1.0])
    key, ids = jax.random.key(0), jnp.zeros(2, jnp.int32)
    with pytest.raises(ValueError, match="needs a sampler, source or target or both"):
        corrupt(key, ids, ids, 3)
    with pytest.raises(ValueError, match="num of at least 1, got 0"):
        corrupt(key, ids, ids, 0, target=uniform(3))
    with pytest.raises(ValueError, match="how often a negative is drawn again, at least 0, got -1"):
        resample(key, ids, lambda key: ids, lambda ids: ids > 0, tries=-1)
