"""The bits of every draw, recorded: a key gives the same sample in every version, and so a resumed run does.

Each call's arrays are hashed as they come, what lies under the masks with them. A digest changes only where a
release says that draws change. Arrays are whole numbers, or floats that were copied: none is computed.
"""

import hashlib
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import KEY_KINDS, slow_but

from jsage.data import digits
from jsage.graph import Graph, GrowingGraph, NewNodes, from_edges, overlay, sort_rows, without_pairs
from jsage.losses import cross_entropy, masked_mean
from jsage.nn import GraphSAGE
from jsage.sampling import (
    batches,
    draws,
    epoch,
    host_loader,
    importance,
    link_batches,
    measure_capacities,
    negatives,
    node_bits,
    sample_blocks,
    sample_blocks_by_node,
    sample_compact_blocks,
    sample_neighbors,
    sample_neighbors_by_node,
    threefry_key,
    walks,
)
from jsage.train import checkpoint, init_state, make_update

PAIRS = 24
FANOUTS = {"one hop": (7,), "two hops": (4, 3), "three hops": (2, 3, 2)}


def digest(tree: Any) -> str:
    """The arrays of a tree in order, each with its dtype and shape; the names of fields do not matter."""
    total = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        total.update(f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes())
    return total.hexdigest()[:16]


@cache
def heavy_tailed() -> Graph:
    """2,000 nodes, 20,000 weighted edges; in- and out-degrees fall as `rank ** (-2/3)`, many rows are empty.

    Raw words and products alone, which are the same with every NumPy.
    """
    u, v, w = np.random.Philox(7).random_raw(60_000).reshape(3, -1) >> np.uint64(11)
    src, dst = ((np.ldexp(x.astype(float), -53) ** 3 * 2000).astype(np.int64) for x in (u, v))
    kept = dst < 1900
    weight = np.ldexp((w >> np.uint64(29)).astype(np.float32), -24)
    return sort_rows(from_edges(src[kept] * 7 % 2000, dst[kept] * 11 % 2000, 2000, weight=weight[kept]))


GRAPHS: dict[str, Callable[[], Graph]] = {"digits": cache(lambda: digits().graph), "heavy": heavy_tailed}
KEYS = {name: cache(partial(jax.random.key, 5, impl=name)) for name in KEY_KINDS}


def nodes(graph: Graph, count: int = 64) -> np.ndarray:
    """Hubs, nodes without neighbors, copies."""
    return (np.arange(count, dtype=np.int32) * 37 % (count - 5) * 29 % graph.num_nodes).astype(np.int32)


def degrees(graph: Graph) -> np.ndarray:
    return np.diff(np.asarray(graph.indptr))[:300]


def pairs(graph: Graph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges of the graph, every fifth of them padding."""
    edge = np.arange(PAIRS) * (graph.num_edges // PAIRS)
    dst = np.searchsorted(np.asarray(graph.indptr), edge, side="right") - 1
    return np.asarray(graph.indices)[edge], dst.astype(np.int32), np.arange(PAIRS) % 5 > 0


def drawn(draw_fn: Any, k: int) -> Callable:
    return lambda key, graph: jax.jit(draw_fn, static_argnums=2)(key, degrees(graph), k)


def sampled(fanouts: tuple[int, ...], draw_fn: Any = draws.without_replacement) -> Callable:
    sample = jax.jit(partial(sample_blocks, fanouts=fanouts, draw=draw_fn))
    return lambda key, graph: sample(key, graph, nodes(graph))


def by_node(fanouts: tuple[int, ...]) -> Callable:
    sample = jax.jit(partial(sample_blocks_by_node, fanouts=fanouts))
    return lambda key, graph: sample(key, graph, nodes(graph))


def wide_ids(key: jax.Array, graph: Graph) -> Any:
    """Ids of 48 bits: two words a node."""
    low, high = nodes(graph).astype(np.uint32) * np.uint32(2654435769), nodes(graph).astype(np.uint32) * 31
    return jax.jit(node_bits, static_argnums=2)(jax.random.fold_in(threefry_key(key), 1), low, 7, high)


def compact_blocks(*capacities: int | None) -> Callable:
    fanouts = (4, 3, 2)[: len(capacities) + 1]
    sample = jax.jit(partial(sample_compact_blocks, fanouts=fanouts, capacities=capacities))
    return lambda key, graph: sample(key, graph, nodes(graph))


def measured(key: jax.Array, graph: Graph) -> Any:
    capacities = measure_capacities(key, graph, jnp.arange(500), 64, (4, 3))
    return capacities, compact_blocks(*capacities)(key, graph)


def link_blocks(exclude: bool, draw_fn: Any, shared: bool) -> Callable:
    def sample(key, graph, src, dst, mask):
        noise = negatives.uniform(graph.num_nodes)(key, (5,) if shared else (PAIRS, 2))
        batch = link_batches.LinkBatch(src, dst, noise, mask)
        return link_batches.sample_link_blocks(key, graph, batch, (4, 3), exclude=exclude, draw=draw_fn)

    jitted = jax.jit(sample)
    return lambda key, graph: jitted(key, graph, *pairs(graph))


def links_by_node(key: jax.Array, graph: Graph) -> Any:
    def sample(key, graph, src, dst, mask):
        return sample_blocks_by_node(key, without_pairs(graph, src, dst, mask), src, (4, 3))

    return jax.jit(sample)(key, graph, *pairs(graph))


def noise(make: Callable[[Graph], Any]) -> Callable:
    def call(key: jax.Array, graph: Graph) -> Any:
        return jax.jit(lambda sampler, key: sampler(key, (50, 3)))(make(graph), key)

    return call


def corrupted(source: bool, target: bool) -> Callable:
    def call(key: jax.Array, graph: Graph) -> Any:
        ends = negatives.uniform(graph.num_nodes), negatives.by_degree(graph)
        kept = {name: end for name, end, on in zip(("source", "target"), ends, (source, target)) if on}  # noqa: B905
        src, dst, _ = pairs(graph)
        return jax.jit(lambda key, src, dst, kept: negatives.corrupt(key, src, dst, 4, **kept))(
            key, src, dst, kept
        )

    return call


def excluded(key: jax.Array, graph: Graph) -> Any:
    """Every edge of a hub is proposed, so that many are drawn again."""
    src = np.repeat(np.argsort(-np.bincount(graph.indices))[:8], 3).astype(np.int32)
    proposed = np.asarray(graph.indices)[np.arange(24 * 6)].reshape(24, 6)
    sampler = negatives.by_degree(graph)
    return jax.jit(negatives.exclude_edges)(key, graph, src, proposed, sampler)


def walked(walker: Callable, **options: Any) -> Callable:
    jitted = jax.jit(partial(walker, **options))
    return lambda key, graph: jitted(key, graph, nodes(graph))


def ranked(function: Callable, *sizes: Any) -> Callable:
    """What importance gives but for its weights, which are computed."""

    visit = partial(importance.restart_visits, walks=5, length=6)

    def run(key, graph, seeds):
        found = function(key, graph, seeds, *sizes, visit=visit)
        return [leaf for leaf in jax.tree.leaves(found) if leaf.dtype != jnp.float32]

    jitted = jax.jit(run)
    return lambda key, graph: jitted(key, graph, nodes(graph))


def ranked_graph(key: jax.Array, graph: Graph) -> Any:
    visit = partial(importance.restart_visits, walks=3, length=4)
    return importance.importance_graph(key, graph, 3, visit=visit, chunk=700)[:2]


def hard(key: jax.Array, graph: Graph) -> Any:
    def run(key, graph, seeds):
        ranking = importance.rank_neighbors(key, graph, seeds, 12)
        return importance.hard_negatives(key, ranking, ranking.node[:, 3:5], 4, ranks=(2, 11))

    return jax.jit(run)(key, graph, nodes(graph))


def grown(key: jax.Array, graph: Graph) -> Any:
    """Edges that came, edges that went, among the nodes that were there."""
    growing = GrowingGraph(graph, np.zeros((graph.num_nodes, 1), np.float32))
    src, dst, _ = pairs(graph)
    data = {name: np.arange(3 * PAIRS, dtype=np.float32) for name in graph.edge_data}
    growing.append_edges(np.tile(dst, 3), np.tile(src, 3), data)
    growing.remove_edges(src, dst)
    return jax.jit(sample_blocks_by_node, static_argnums=3)(key, growing.tables()[0], nodes(graph), (4, 3))


def joined(key: jax.Array, graph: Graph) -> Any:
    """More edges among known nodes, beside the graph."""
    src, dst, _ = pairs(graph)
    data = {name: np.arange(3 * PAIRS, dtype=np.float32) for name in graph.edge_data}
    new = NewNodes(np.zeros((1, 1), np.float32), np.tile(dst, 3), np.tile(src, 3), data)
    return jax.jit(sample_blocks_by_node, static_argnums=3)(key, overlay(graph, new), nodes(graph), (4, 3))


def loaded(capacities: tuple[int, ...] | None) -> Callable:
    """The rows that the host's loader gives, read through the blocks: each node's own id."""

    def call(key: jax.Array, graph: Graph) -> Any:
        features = np.arange(graph.num_nodes, dtype=np.float32)[:, None]
        loader = host_loader.Loader(host_loader.sampler((4, 3), capacities), graph, features)
        given = [], []
        for group in loader.prefetch(key, 3, batches(np.arange(96, dtype=np.int32), 32), together=2):
            rows, (first, *rest) = np.asarray(group.rows), group.blocks
            given[0].append((first, rest, group.batch))
            given[1].append((rows[np.asarray(first.dst)], rows[np.asarray(first.src)]))
        return given

    return call


CALLS: dict[str, Callable[[jax.Array, Graph], Any]] = {
    **{f"draw without replacement, {k}": drawn(draws.without_replacement, k) for k in (1, 5, 25)},
    **{f"draw with replacement, {k}": drawn(draws.with_replacement, k) for k in (1, 5, 25)},
    "epoch": lambda key, graph: jax.jit(epoch, static_argnums=2)(key, nodes(graph, 200), 32),
    "batches": lambda key, graph: batches(nodes(graph, 200), 32),
    "neighbors": lambda key, graph: jax.jit(sample_neighbors, static_argnums=3)(key, graph, nodes(graph), 6),
    **{f"blocks, {name}": sampled(fanouts) for name, fanouts in FANOUTS.items()},
    "blocks with replacement": sampled((4, 3), draws.with_replacement),
    "blocks by node": by_node((2, 3, 2)),
    "neighbors by node": lambda key, graph: jax.jit(sample_neighbors_by_node, static_argnums=3)(
        key, graph, nodes(graph), 6
    ),
    "bits of 48-bit ids": wide_ids,
    "compact blocks, measured": measured,
    "compact blocks, a tree first": compact_blocks(None, 400),
    "compact blocks, too many": compact_blocks(20),
    "link blocks": link_blocks(True, draws.without_replacement, False),
    "link blocks with replacement, shared noise": link_blocks(True, draws.with_replacement, True),
    "link blocks, nothing out": link_blocks(False, draws.without_replacement, False),
    "link blocks by node": links_by_node,
    "noise, uniform": noise(lambda graph: negatives.uniform(graph.num_nodes - 9, start=9)),
    "noise, by degree": noise(negatives.by_degree),
    "noise, by degree among some": noise(lambda graph: negatives.by_degree(graph, 0.5, nodes=nodes(graph))),
    "noise, among some": noise(lambda graph: negatives.choice(nodes(graph))),
    "noise, weights": noise(lambda graph: negatives.alias_table(np.arange(1, 101) % 7)),
    "corrupted, source": corrupted(True, False),
    "corrupted, target": corrupted(False, True),
    "corrupted, either": corrupted(True, True),
    "noise without edges": excluded,
    "in batch": lambda key, graph: jax.jit(negatives.in_batch)(*pairs(graph)),
    "walk": walked(walks.random_walk, length=6),
    "walk with restart": walked(walks.random_walk, length=6, restart=0.3),
    "node2vec": walked(walks.node2vec_walk, length=5, p=0.5, q=2.0),
    "positive pairs": walked(walks.positive_pairs, walks=3, length=4),
    "importance ranking": ranked(importance.rank_neighbors, 8),
    "importance neighbors": ranked(importance.importance_neighbors, 8),
    "importance blocks": ranked(importance.importance_blocks, (4, 3)),
    "importance graph": ranked_graph,
    "hard negatives": hard,
    "growing graph": grown,
    "new edges": joined,
    "host loader": loaded(None),
    "host loader, compact": loaded((128,)),
}

BOTH = [name for name in CALLS if name.startswith("draw")] + ["epoch", "blocks, two hops"]
"""Calls that are recorded under both kinds of keys on both graphs."""
CASES = [
    (name, graph, key)
    for name in CALLS
    for graph, key in product(GRAPHS, KEYS)
    if (graph, key) in (("digits", "threefry2x32"), ("heavy", "philox4x32")) or name in BOTH
]


class Run:
    """Training on digits, with dropout: what it samples in each step, and the state after each epoch."""

    def __init__(self, impl: str) -> None:
        self.dataset, optimizer = digits(), optax.adam(0.01)
        graph, features, labels, train, *_ = jax.tree.map(jnp.asarray, self.dataset)
        model = GraphSAGE(hidden=8, out=10, dropout=0.3)

        def loss_fn(params, stats, batch, key):
            (seeds, mask), (sample, drop) = batch, jax.random.split(key)
            blocks = sample_blocks(sample, graph, seeds, (4, 3))
            h = model.apply(params, features, blocks, deterministic=False, rngs={"dropout": drop})
            losses = cross_entropy(h, labels[seeds], mask)
            return masked_mean(losses, mask), ({"loss": losses.sum(), "sampled": (seeds, blocks)}, stats)

        @jax.jit
        def run_epoch(state):
            seeds, mask = epoch(jax.random.fold_in(state.key, 1_000 + state.step), train, 32)
            return jax.lax.scan(make_update(loss_fn, optimizer), state, (seeds, mask))

        blocks = sample_blocks(jax.random.key(0), graph, train[:2], (4, 3))
        params = jax.jit(model.init)(jax.random.key(1), features, blocks)
        self.start, self.run_epoch = init_state(jax.random.key(2, impl=impl), params, optimizer), run_epoch

    def train(self, state: Any, epochs: int) -> tuple[Any, list[Any]]:
        sampled = []
        for _ in range(epochs):
            state, metrics = self.run_epoch(state)
            sampled.append(metrics["sampled"])
        return state, sampled


DIGESTS = {
    "digits": "99851bd0036d2903",
    "heavy": "dcce85628aa3556f",
    "draw without replacement, 1; digits; threefry2x32": "245f230d946a76f6",
    "draw without replacement, 1; digits; philox4x32": "405d7471d6cd14bd",
    "draw without replacement, 1; heavy; threefry2x32": "165cf9950cc7b043",
    "draw without replacement, 1; heavy; philox4x32": "14e3aadc97425b2a",
    "draw without replacement, 5; digits; threefry2x32": "e6fcc4bfb967f9b4",
    "draw without replacement, 5; digits; philox4x32": "d827bcea730f2eac",
    "draw without replacement, 5; heavy; threefry2x32": "8c178db4dcb7cb28",
    "draw without replacement, 5; heavy; philox4x32": "315fa21152191db7",
    "draw without replacement, 25; digits; threefry2x32": "475a41924faf3310",
    "draw without replacement, 25; digits; philox4x32": "475a41924faf3310",
    "draw without replacement, 25; heavy; threefry2x32": "f20159be8b9212ea",
    "draw without replacement, 25; heavy; philox4x32": "66932df5d8d1522d",
    "draw with replacement, 1; digits; threefry2x32": "245f230d946a76f6",
    "draw with replacement, 1; digits; philox4x32": "405d7471d6cd14bd",
    "draw with replacement, 1; heavy; threefry2x32": "165cf9950cc7b043",
    "draw with replacement, 1; heavy; philox4x32": "14e3aadc97425b2a",
    "draw with replacement, 5; digits; threefry2x32": "f72706e30df413c1",
    "draw with replacement, 5; digits; philox4x32": "0ce3f5cfd9734f0e",
    "draw with replacement, 5; heavy; threefry2x32": "f5e2c26e4ce0193e",
    "draw with replacement, 5; heavy; philox4x32": "7e1fa1984badfdda",
    "draw with replacement, 25; digits; threefry2x32": "442a25881e1a2f8d",
    "draw with replacement, 25; digits; philox4x32": "8edcf4519f365b94",
    "draw with replacement, 25; heavy; threefry2x32": "559e6a12d41065cc",
    "draw with replacement, 25; heavy; philox4x32": "f5a0f62f036c9a4a",
    "epoch; digits; threefry2x32": "4c803fa76318be11",
    "epoch; digits; philox4x32": "591400a26ef729ee",
    "epoch; heavy; threefry2x32": "23bd4e20bde47c18",
    "epoch; heavy; philox4x32": "e92e14e0c4334b5b",
    "batches; digits; threefry2x32": "103cefda75b9ed86",
    "batches; heavy; philox4x32": "f5761fce818c3ca0",
    "neighbors; digits; threefry2x32": "17c479266c813678",
    "neighbors; heavy; philox4x32": "d70a0ac4e494bbf9",
    "blocks, one hop; digits; threefry2x32": "3cc71da988e22ae3",
    "blocks, one hop; heavy; philox4x32": "840343a4a8464ff4",
    "blocks, two hops; digits; threefry2x32": "350933a35c787ff7",
    "blocks, two hops; digits; philox4x32": "a475974dcd5c77f3",
    "blocks, two hops; heavy; threefry2x32": "13f1b68e5a758fe1",
    "blocks, two hops; heavy; philox4x32": "4044011c7277556c",
    "blocks, three hops; digits; threefry2x32": "ff53b88eb533cea6",
    "blocks, three hops; heavy; philox4x32": "e0b9b262e2aeae55",
    "blocks with replacement; digits; threefry2x32": "387bb508c4a8fab8",
    "blocks with replacement; heavy; philox4x32": "e76d5f296fa60c51",
    "blocks by node; digits; threefry2x32": "f7249cb2544b4c12",
    "blocks by node; heavy; philox4x32": "b44c3c334d664731",
    "neighbors by node; digits; threefry2x32": "8ab98b8cb94e8f5a",
    "neighbors by node; heavy; philox4x32": "20dff16ce115c01a",
    "bits of 48-bit ids; digits; threefry2x32": "83f06cb079f174a9",
    "bits of 48-bit ids; heavy; philox4x32": "5648bf5fc9a47f9c",
    "compact blocks, measured; digits; threefry2x32": "f63ee4d52caf0ccc",
    "compact blocks, measured; heavy; philox4x32": "43329fd26fcddd20",
    "compact blocks, a tree first; digits; threefry2x32": "9571d66dca52e9c3",
    "compact blocks, a tree first; heavy; philox4x32": "32b087f550c8e86d",
    "compact blocks, too many; digits; threefry2x32": "5e333a3f3a1f54c9",
    "compact blocks, too many; heavy; philox4x32": "aa59acf3f58c948c",
    "link blocks; digits; threefry2x32": "a789ef5f0f3e6535",
    "link blocks; heavy; philox4x32": "46481d584444a883",
    "link blocks with replacement, shared noise; digits; threefry2x32": "bed40780a65cb2c0",
    "link blocks with replacement, shared noise; heavy; philox4x32": "62b0c897fefcad7c",
    "link blocks, nothing out; digits; threefry2x32": "a0114c3b09a07b24",
    "link blocks, nothing out; heavy; philox4x32": "238a5a8bcdb2778d",
    "link blocks by node; digits; threefry2x32": "ea779b814d876ab0",
    "link blocks by node; heavy; philox4x32": "747c72cd58f90036",
    "noise, uniform; digits; threefry2x32": "a6d0ee554407a33d",
    "noise, uniform; heavy; philox4x32": "b102bd23836a7d48",
    "noise, by degree; digits; threefry2x32": "35570c57ec10678a",
    "noise, by degree; heavy; philox4x32": "033071c46bbd6c67",
    "noise, by degree among some; digits; threefry2x32": "903e2861ba3566d6",
    "noise, by degree among some; heavy; philox4x32": "60a0f263701cab96",
    "noise, among some; digits; threefry2x32": "626c947dcb52d96b",
    "noise, among some; heavy; philox4x32": "119fc0afa55adee1",
    "noise, weights; digits; threefry2x32": "4741a23912a1f644",
    "noise, weights; heavy; philox4x32": "dfedea50036d5bb3",
    "corrupted, source; digits; threefry2x32": "a4689c6626747081",
    "corrupted, source; heavy; philox4x32": "f4c507d2bd6b60f2",
    "corrupted, target; digits; threefry2x32": "7c3d42a531b44b8f",
    "corrupted, target; heavy; philox4x32": "dc650a5ec0745cb0",
    "corrupted, either; digits; threefry2x32": "3b56758e1080d709",
    "corrupted, either; heavy; philox4x32": "9191dc64675c30be",
    "noise without edges; digits; threefry2x32": "0b345f607e8f2cbb",
    "noise without edges; heavy; philox4x32": "f5b35f7faaeb967a",
    "in batch; digits; threefry2x32": "01431aab699be024",
    "in batch; heavy; philox4x32": "639cdf5044d3ac9e",
    "walk; digits; threefry2x32": "5d3d97172b4acd3f",
    "walk; heavy; philox4x32": "502730874ccb1d00",
    "walk with restart; digits; threefry2x32": "8f637bed632c0dfb",
    "walk with restart; heavy; philox4x32": "a6489130cdbc1dba",
    "node2vec; digits; threefry2x32": "22b0d6b987ddb099",
    "node2vec; heavy; philox4x32": "4a6e74834f442769",
    "positive pairs; digits; threefry2x32": "d8167501b484a36f",
    "positive pairs; heavy; philox4x32": "6c991b827e14d322",
    "importance ranking; digits; threefry2x32": "c2db495b6a043b83",
    "importance ranking; heavy; philox4x32": "55307b59dc90a58c",
    "importance neighbors; digits; threefry2x32": "10d9be14c028aa67",
    "importance neighbors; heavy; philox4x32": "f4583ff28a7bca42",
    "importance blocks; digits; threefry2x32": "920d822923f7cc08",
    "importance blocks; heavy; philox4x32": "43e88f94d4a5ca89",
    "importance graph; digits; threefry2x32": "b42755d438eddd30",
    "importance graph; heavy; philox4x32": "b3d4f865fbefb39f",
    "hard negatives; digits; threefry2x32": "4a948468cd5e00c1",
    "hard negatives; heavy; philox4x32": "16f3606f3623f2c0",
    "growing graph; digits; threefry2x32": "e44d3e9afb0963b0",
    "growing graph; heavy; philox4x32": "2a7e9c46d9daf4a8",
    "new edges; digits; threefry2x32": "479b72786c3e6046",
    "new edges; heavy; philox4x32": "86aaf9f3e34c823d",
    "host loader; digits; threefry2x32": "36cc6e6ffde08cb7",
    "host loader; heavy; philox4x32": "249b13a04b6fe1b0",
    "host loader, compact; digits; threefry2x32": "926606d9f856656b",
    "host loader, compact; heavy; philox4x32": "89fa36a10cb74361",
    "run; threefry2x32": "ab3d7be0eef10441",
    "run; philox4x32": "1eb04e21ed37194e",
}
"""call; graph; kind of the key -> the beginning of its arrays' SHA-256"""


def bits(name: str, graph: str, key: str) -> str:
    return digest(CALLS[name](KEYS[key](), GRAPHS[graph]()))


def test_the_graphs_are_those_that_were_recorded():
    assert digest(GRAPHS["digits"]()) == DIGESTS["digits"]
    assert digest(GRAPHS["heavy"]()) == DIGESTS["heavy"]
    into = np.diff(heavy_tailed().indptr)
    assert into.max() > 1000
    assert (into == 0).sum() > 100


@pytest.mark.parametrize(("name", "graph", "key"), CASES)
def test_a_key_gives_the_bits_that_were_recorded(name: str, graph: str, key: str):
    assert bits(name, graph, key) == DIGESTS[f"{name}; {graph}; {key}"]


@pytest.mark.slow
@pytest.mark.parametrize("key", slow_but(["threefry2x32"], KEYS))
def test_a_run_samples_what_was_recorded_and_a_resumed_one_goes_on(key: str, tmp_path):
    run = Run(key)
    state, sampled = run.train(run.start, 4)
    assert digest(sampled) == DIGESTS[f"run; {key}"]
    half, first = run.train(run.start, 2)
    checkpoint.save(tmp_path, int(half.step), half)
    resumed, second = run.train(checkpoint.restore(tmp_path, run.start), 2)
    assert digest(first + second) == DIGESTS[f"run; {key}"]
    state, resumed = (x._replace(key=jax.random.key_data(x.key)) for x in (state, resumed))
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
