"""Nodes in no table: the same outputs as on the graph rebuilt with them in it."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from helpers import slow_but

from jsage import aggregate, embed_all
from jsage.graph import Graph, from_edges
from jsage.graph.adjacency import Adjacency
from jsage.graph.overlay import NewNodes, overlay
from jsage.infer import apply_blocks, embed_new, new_nodes
from jsage.nn import LSTM, GraphSAGE, Pool, SAGEConv, jump_concat
from jsage.sampling import full_block, sample_blocks_by_node

N, M, WIDTH = 50, 5, 3
RNG = np.random.default_rng(0)
OLD = np.concatenate([RNG.integers(0, N, (2, 200)), [np.arange(1, N), np.zeros(N - 1, int)]], 1)  # 0: a hub
# No edge goes into node 52, none at 54 at all; parallel edges, a loop, edges into known nodes and among new.
NEW = np.array(
    [
        [0, 3, 3, 7, 50, 51, 51, 53, 50, 51, 53, 53, 52, 50],
        [50, 50, 50, 51, 51, 50, 50, 53, 0, 7, 3, 3, 0, 53],
    ]
)
OLD_WEIGHT, NEW_WEIGHT = RNG.normal(size=OLD.shape[1]), RNG.normal(size=NEW.shape[1])


def graphs(*, weighted: bool = False) -> tuple[Graph, Graph, dict]:
    """The known graph, the graph of all edges, and the new edges' data."""
    old, new = ({"weight": w.astype(np.float32)} if weighted else {} for w in (OLD_WEIGHT, NEW_WEIGHT))
    both = {name: np.concatenate([old[name], new[name]]) for name in old}
    return from_edges(*OLD, N, **old), from_edges(*np.concatenate([OLD, NEW], 1), N + M, **both), new


def ends(edges: np.ndarray, known: int = N) -> np.ndarray:
    """Edges of the rebuilt graph as a request has them: new node `i` is `-1 - i`."""
    return np.where(edges >= known, known - 1 - edges, edges)


def rows(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N + M, WIDTH)).astype(np.float32)


conv = {
    "mean": partial(SAGEConv),
    "sum": partial(SAGEConv, aggregate=aggregate.sum),
    "max": partial(SAGEConv, aggregate=aggregate.max),
    "gcn": partial(SAGEConv, aggregate=aggregate.gcn),
    "pool": partial(SAGEConv, aggregate=Pool(4)),
    "project": partial(SAGEConv, project=True),
}
MODELS = {
    **{name: GraphSAGE(hidden=4, out=2, conv=made) for name, made in conv.items()},
    "one layer": GraphSAGE(hidden=4, out=2, num_layers=1),
    "three layers": GraphSAGE(hidden=4, out=2, num_layers=3),
    "narrow": GraphSAGE(hidden=2, out=2),
    "norm, residual and jump": GraphSAGE(
        hidden=4, out=2, num_layers=3, norm=nn.LayerNorm, residual=True, jump=jump_concat
    ),
}


def whole(model: GraphSAGE, graph: Graph, table: np.ndarray, params=None, *, slots: bool = False):
    """Parameters, and the outputs of the new nodes on the rebuilt graph."""
    blocks = (full_block(graph, slots=slots),) * model.num_layers
    if params is None:
        params = reference.filled(jax.eval_shape(model.init, jax.random.key(0), table, blocks))
    return params, np.asarray(model.apply(params, jax.device_put(table), blocks))[N:]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", slow_but(["mean", "max"], MODELS))
def test_equals_the_rebuilt_graph(name: str, weighted: bool):
    graph, rebuilt, data = graphs(weighted=weighted)
    table = rows()
    params, expected = whole(MODELS[name], rebuilt, table)
    new = NewNodes(table[N:], *ends(NEW), data)
    got = embed_new(MODELS[name], params, graph, jnp.asarray(table[:N]), new)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("name", ["mean", "sum", "max", "gcn"])
def test_equals_the_rebuilt_graph_to_the_last_bit_in_whole_numbers(name: str):
    """Sums of small whole numbers are exact in any order, so not a bit may differ."""
    graph, rebuilt, _ = graphs()
    table = np.random.default_rng(2).integers(-3, 4, (N + M, WIDTH)).astype(np.float32)
    model = MODELS[name]
    params, _ = whole(model, rebuilt, table)
    params = jax.tree.map(np.round, params)
    if name in ("mean", "gcn"):  # a power of two of neighbors everywhere: means are exact too
        rebuilt, graph, edges = regular(gcn=name == "gcn")
    else:
        edges = NEW
    _, expected = whole(model, rebuilt, table, params)
    got = embed_new(model, params, graph, jnp.asarray(table[:N]), NewNodes(table[N:], *ends(edges)))
    np.testing.assert_array_equal(got, expected)


def regular(*, gcn: bool) -> tuple[Graph, Graph, np.ndarray]:
    """Every node has 4 neighbors (3 for gcn, which counts the node itself)."""
    degree = 3 if gcn else 4
    dst = np.repeat(np.arange(N + M), degree)
    edges = np.stack([np.random.default_rng(3).integers(0, N + M, len(dst)), dst])
    beside = (edges >= N).any(0)
    known = edges[:, ~beside]
    order = np.concatenate([known, edges[:, beside]], 1)
    return from_edges(*order, N + M), from_edges(*known, N), edges[:, beside]


@pytest.mark.slow
def test_the_lstm_reads_whole_neighborhoods_by_fanouts():
    graph, rebuilt, _ = graphs()
    table, model = rows(), GraphSAGE(hidden=4, out=2, conv=partial(SAGEConv, aggregate=LSTM()))
    params, expected = whole(model, rebuilt, table, slots=True)
    new, known = NewNodes(table[N:], *ends(NEW)), jnp.asarray(table[:N])
    got = embed_new(model, params, graph, known, new, fanouts=(8, 64))
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
    with pytest.raises(TypeError, match="pass fanouts no smaller than any degree"):
        embed_new(model, params, graph, known, new)


@pytest.mark.slow
def test_sampled_neighbors_are_those_of_the_rebuilt_graph():
    graph, rebuilt, data = graphs(weighted=True)
    table, model, fanouts, key = rows(), MODELS["mean"], (3, 2), jax.random.key(0)
    params, _ = whole(model, rebuilt, table)
    new, seeds = NewNodes(table[N:], *ends(NEW), data), N + np.arange(M, dtype=np.int32)
    joined = overlay(graph, new)
    sample = jax.jit(sample_blocks_by_node, static_argnums=3)
    blocks, expected = (sample(key, g, seeds, fanouts) for g in (joined, rebuilt))
    for block, other in zip(blocks, expected, strict=True):
        np.testing.assert_array_equal(block.mask, other.mask)
        weights = (np.where(b.mask, b.edge_data["weight"], 0) for b in (block, other))
        np.testing.assert_array_equal(*weights)  # what a padded slot holds is nobody's business
    np.testing.assert_array_equal(blocks[0].src, expected[0].src)
    got = apply_blocks(model, params, jnp.asarray(table[:N]), joined, blocks)
    np.testing.assert_allclose(got, jax.jit(model.apply)(params, table, expected), atol=1e-5)
    np.testing.assert_allclose(
        embed_new(model, params, graph, jnp.asarray(table[:N]), new, fanouts), got, atol=1e-6
    )


def test_a_graph_with_new_nodes_reads_as_the_rebuilt_one():
    graph, rebuilt, data = graphs(weighted=True)
    joined = overlay(graph, NewNodes(rows()[N:], *ends(NEW), data))
    assert isinstance(joined, Adjacency)
    indptr = np.asarray(rebuilt.indptr)
    degrees = jax.jit(lambda joined, nodes: joined.degrees(nodes))
    np.testing.assert_array_equal(degrees(joined, np.arange(N + M)), np.diff(indptr))
    nodes = np.repeat(np.arange(N + M), np.diff(indptr))
    offset = np.arange(len(nodes)) - indptr[nodes]
    read = jax.jit(lambda joined, *slots: joined.edges_at(*slots))
    src, edge_data = read(joined, nodes, offset, np.ones(len(nodes), bool))
    np.testing.assert_array_equal(src, rebuilt.indices)
    np.testing.assert_array_equal(edge_data["weight"], rebuilt.edge_data["weight"])


def test_one_at_a_time_and_many_at_once_are_the_same_for_strangers():
    """New nodes that do not touch one another, more of them than one batch holds."""
    graph, table, model = graphs()[0], rows(), MODELS["mean"]
    params, _ = whole(model, graphs()[1], table)
    known = jnp.asarray(table[:N])
    count, rng = 530, np.random.default_rng(5)
    features = rng.normal(size=(count, WIDTH)).astype(np.float32)
    src = rng.integers(0, N, 2 * count)
    dst = -1 - np.arange(2 * count) % count
    together = np.asarray(embed_new(model, params, graph, known, NewNodes(features, src, dst)))
    assert together.shape == (count, 2)
    for i in (0, 511, 512, 529):
        alone = NewNodes(features[i : i + 1], src[i::count], [-1, -1])
        np.testing.assert_allclose(
            np.asarray(embed_new(model, params, graph, known, alone))[0], together[i], rtol=1e-5, atol=1e-5
        )


@pytest.mark.slow
def test_a_graph_without_nodes_or_edges_takes_new_ones():
    model = GraphSAGE(hidden=4, out=2)
    edges, table = np.array([[0, 1], [1, 0]]), rows()[:2]
    params, _ = whole(model, from_edges(*edges, 2), table)
    expected = jax.jit(model.apply)(params, table, (full_block(from_edges(*edges, 2)),) * 2)
    empty = jax.device_put(np.zeros((1, WIDTH), np.float32))
    got = embed_new(model, params, from_edges([], [], 1), empty, NewNodes(table, *(-1 - edges)))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("fanouts", [None, (3, 2)])
def test_requests_of_any_size_within_the_capacity_compile_once(fanouts):
    graph, table, rng = graphs()[0], rows(), np.random.default_rng(6)
    params, traces = whole(MODELS["mean"], graphs()[1], table)[0], []
    model = GraphSAGE(hidden=4, out=2, act=lambda rows: traces.append(1) or nn.relu(rows))
    embed = partial(embed_new, model, params, graph, jnp.asarray(table[:N]))
    program = new_nodes._whole if fanouts is None else new_nodes._sampled
    counts, before = [], program._cache_size()
    for number in range(30):
        nodes, edges = rng.integers(1, 9), rng.integers(0, 33)
        edges = rng.integers(0, N + nodes, (2, edges))
        features = rng.normal(size=(nodes, WIDTH)).astype(np.float32)
        out = embed(NewNodes(features, *ends(edges), capacity=(8, 32)), fanouts)
        counts.append(len(traces))
        if fanouts is None and number % 15 == 0:
            rebuilt = from_edges(*np.concatenate([OLD, edges], 1), N + int(nodes))
            both = jnp.concatenate([table[:N], features])
            expected = MODELS["mean"].apply(params, both, (full_block(rebuilt),) * 2)[N:]
            np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    assert 0 < counts[0] == counts[-1]
    assert program._cache_size() == before + 1


def test_a_model_that_is_not_made_of_layers_says_what_it_lacks():
    class Bare(nn.Module):
        num_layers: int = 2

        def layer(self, k, h, block):
            return h

    given = graphs()[0], jnp.asarray(rows()[:N]), NewNodes(np.ones((1, WIDTH)), [0], [-1])
    message = "Bare is no LayeredModel: it lacks identity, jump, inputs, finish"
    with pytest.raises(TypeError, match=message):
        embed_new(Bare(), {}, *given)
    with pytest.raises(TypeError, match=message):
        embed_all(Bare(), {}, *given[:2])


GOOD = NewNodes(np.ones((2, WIDTH), np.float32), [0, -1], [-1, -2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"src": [0, 50]}, r"new.src must be node ids in 0 .. 49, or -1 .. -2 \(-1 - i is new .* got 50"),
        ({"dst": [-3, 0]}, r"new.dst must be node ids .* got -3"),
        ({"dst": [-1]}, r"new.src and new.dst must have one entry an edge each, got 2 and 1"),
        ({"src": [0.5, 1.0]}, r"new.src must hold integers, got float64"),
        ({"src": np.array([[0, 1]])}, r"new.src must have one axis, got shape \(1, 2\)"),
        ({"features": np.full((2, WIDTH), np.nan)}, r"new.features must be finite in float32, .* in row 0"),
        ({"features": np.ones((2, WIDTH + 1))}, r"must be \[num_new, 3\] as the table is, got \(2, 4\)"),
        ({"features": np.ones((0, WIDTH)), "src": [], "dst": []}, "no new nodes to embed"),
        ({"capacity": (1, 9)}, r"capacity is 1 new nodes and 9 edges, got 2 and 2: raise it"),
        ({"edge_data": {"weight": [1.0, 2.0]}}, r"the names of the graph's, \[\], got \['weight'\]"),
    ],
)
def test_bad_requests_say_what_is_wrong(change: dict, message: str):
    graph, table = graphs()[0], rows()
    params, _ = whole(MODELS["mean"], graphs()[1], table)
    with pytest.raises(ValueError, match=message):
        embed_new(MODELS["mean"], params, graph, jnp.asarray(table[:N]), GOOD._replace(**change))


def test_edge_data_must_have_one_row_an_edge():
    with pytest.raises(ValueError, match=r"'weight' must have 2 rows, one an edge, got shape \(3,\)"):
        overlay(graphs(weighted=True)[0], GOOD._replace(edge_data={"weight": [1.0, 2.0, 3.0]}))


@pytest.mark.slow
def test_a_model_with_an_embedding_for_each_known_node_is_refused():
    model = GraphSAGE(hidden=4, out=2, identity=(N, 4))
    with pytest.raises(ValueError, match="new nodes have none"):
        embed_new(model, {}, graphs()[0], jnp.asarray(rows()[:N]), GOOD)
