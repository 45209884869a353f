"""A growing graph against a plain list of edges, through long random histories."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage._internal.device_mirror import DeviceMirror
from jsage.graph import Graph, GrowingGraph, from_edges
from jsage.graph.overlay import NewNodes
from jsage.infer import embed_new
from jsage.nn import GraphSAGE
from jsage.sampling import fast_key, full_block, sample_blocks, sample_blocks_by_node

WIDTH = 3


class Listed:
    """The reference: a list of `[src, dst, weight]`, searched from its start."""

    def __init__(self, edges: list, features: np.ndarray):
        self.edges, self.features = edges, features

    def append_nodes(self, features, src, dst, weight):
        self.features = np.concatenate([self.features, features])
        self.append_edges(src, dst, weight)

    def append_edges(self, src, dst, weight):
        self.edges += [[int(u), int(v), float(w)] for u, v, w in zip(src, dst, weight, strict=True)]

    def remove_edges(self, pairs):
        for u, v in pairs:
            del self.edges[next(i for i, edge in enumerate(self.edges) if edge[:2] == [u, v])]

    def remove_nodes(self, nodes):
        self.edges = [edge for edge in self.edges if edge[0] not in nodes and edge[1] not in nodes]
        self.features[list(nodes)] = 0

    def graph(self) -> Graph:
        src, dst, weight = np.array(self.edges, np.float64).reshape(-1, 3).T
        return from_edges(
            src.astype(int), dst.astype(int), len(self.features), weight=weight.astype(np.float32)
        )


def start(num_nodes: int = 8, num_edges: int = 20) -> tuple[GrowingGraph, Listed]:
    rng = np.random.default_rng(0)
    src, dst = rng.integers(0, num_nodes, (2, num_edges))
    weight, features = rng.normal(size=num_edges).astype(np.float32), rng.normal(size=(num_nodes, WIDTH))
    features = features.astype(np.float32)
    graph = from_edges(src, dst, num_nodes, weight=weight)
    listed = Listed([], features.copy())
    listed.append_edges(src, dst, weight)
    return GrowingGraph(graph, features), listed


def check(growing: GrowingGraph, listed: Listed) -> None:
    expected, got = listed.graph(), growing.graph()
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    graph, table = growing.tables()
    assert growing.num_nodes == len(listed.features)
    assert growing.num_edges == len(listed.edges)
    degree = np.diff(expected.indptr)
    np.testing.assert_array_equal(np.asarray(graph.degree)[: len(degree)], degree)
    assert not np.asarray(graph.degree)[len(degree) :].any()
    place = np.repeat(np.asarray(graph.start)[: len(degree)], degree)
    place = place + np.arange(len(place)) - np.repeat(np.asarray(expected.indptr)[:-1], degree)
    np.testing.assert_array_equal(np.asarray(graph.indices)[place], expected.indices)
    np.testing.assert_array_equal(np.asarray(graph.edge_data["weight"])[place], expected.edge_data["weight"])
    np.testing.assert_array_equal(np.asarray(table)[: len(degree)], listed.features)
    np.testing.assert_array_equal(growing.features(), listed.features)
    assert not np.asarray(table)[len(degree) :].any()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_history_leaves_the_graph_of_the_edges_that_are_left(seed: int):
    growing, listed = start()
    rng = np.random.default_rng(seed)
    for step in range(60):
        kind, n = rng.integers(0, 5), growing.num_nodes
        if kind <= 1:  # more come than go
            new, count = int(rng.integers(0, 4)), int(rng.integers(0, 12))
            features = rng.normal(size=(new, WIDTH)).astype(np.float32)
            src, dst = rng.integers(0, n + new, (2, count))
            weight = rng.normal(size=count).astype(np.float32)
            ids = growing.append_nodes(features, src, dst, {"weight": weight})
            np.testing.assert_array_equal(ids, np.arange(n, n + new))
            listed.append_nodes(features, src, dst, weight)
        elif kind == 2:
            src, dst = rng.integers(0, n, 15), np.full(15, rng.integers(0, n))  # all into one node
            weight = rng.normal(size=15).astype(np.float32)
            growing.append_edges(src, dst, {"weight": weight})
            listed.append_edges(src, dst, weight)
        elif kind == 3 and listed.edges:
            chosen = rng.permutation(len(listed.edges))[:5]
            pairs = [listed.edges[i][:2] for i in chosen]
            growing.remove_edges(*np.array(pairs).T)
            listed.remove_edges(pairs)
        elif kind == 4 and step % 3 == 0:
            nodes = set(rng.integers(0, n, 2).tolist())
            growing.remove_nodes(list(nodes))
            listed.remove_nodes(nodes)
        if step % 7 == 0:
            check(growing, listed)
    check(growing, listed)


@pytest.mark.slow
def test_samples_and_embeddings_are_those_of_the_ordinary_graph():
    growing, listed = start(60, 300)
    for _ in range(3):
        src, dst = np.random.default_rng(1).integers(0, 61, (2, 50))
        growing.append_nodes(np.ones((1, WIDTH)), src, dst, {"weight": np.ones(50)})
        listed.append_nodes(np.ones((1, WIDTH), np.float32), src, dst, np.ones(50))
    plain, (graph, table) = listed.graph(), growing.tables()
    seeds, key = np.arange(60, dtype=np.int32), fast_key(0)
    sample = jax.jit(sample_blocks_by_node, static_argnums=3)
    got, expected = (sample(key, where, seeds, (4, 3)) for where in (graph, plain))
    jax.tree.map(np.testing.assert_array_equal, got, expected)

    model = GraphSAGE(hidden=4, out=2)
    params = jax.jit(model.init)(jax.random.key(0), table, got)
    assert graph.num_nodes == 63 < graph.id_limit == len(table)  # ids to spare
    new = NewNodes(np.ones((1, WIDTH)), [5, 6, -1], [-1, -1, 5], {"weight": [1.0, 2.0, 3.0]})
    out = embed_new(model, params, graph, table, new)
    src, dst, weight = np.array([*listed.edges, [5, 63, 1.0], [6, 63, 2.0], [63, 5, 3.0]], np.float64).T
    rebuilt = from_edges(src.astype(int), dst.astype(int), 64, weight=weight.astype(np.float32))
    both = np.concatenate([listed.features, np.ones((1, WIDTH), np.float32)])
    expected = jax.jit(model.apply)(params, both, (full_block(rebuilt),) * 2)
    np.testing.assert_allclose(out, np.asarray(expected)[63:], rtol=1e-5, atol=1e-5)


def test_nothing_recompiles_until_a_capacity_doubles():
    growing, traces = start()[0], []

    @jax.jit
    def step(graph, table, seeds):
        traces.append(1)
        return sample_blocks_by_node(jax.random.key(0), graph, seeds, (3, 2)), table[seeds]

    shapes, rng = set(), np.random.default_rng(0)
    for _ in range(40):
        n = growing.num_nodes
        src, dst = rng.integers(0, n + 1, (2, 4))
        growing.append_nodes(np.zeros((1, WIDTH)), src, dst, {"weight": np.zeros(4)})
        tables = growing.tables()
        shapes.add(jax.tree.map(jnp.shape, tables[0]).indices + tables[1].shape)
        step(*tables, np.arange(4))
    assert len(traces) == len(shapes) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("hub", [False, True])
def test_an_edge_costs_constant_work_on_average(hub: bool, monkeypatch: pytest.MonkeyPatch):
    """Slots written and arrays copied, counted, over edges added one by one."""
    work = []
    write, replace = DeviceMirror.write, DeviceMirror.replace
    monkeypatch.setattr(
        DeviceMirror, "write", lambda self, rows, v: (work.append(len(rows)), write(self, rows, v))
    )
    monkeypatch.setattr(DeviceMirror, "replace", lambda self, v: (work.append(len(v)), replace(self, v)))
    costs = []
    for count in (1_000, 8_000):
        growing = GrowingGraph(from_edges([0], [1], 100), np.zeros((100, 1)))
        work.clear()
        for i in range(count):
            growing.append_edges([i % 7], [0 if hub else i % 100])
        costs.append(sum(work) / count)
    assert costs[1] < 1.2 * costs[0] + 1
    assert costs[1] < 40


def test_what_is_removed_makes_room():
    growing = start()[0]
    slots = growing.tables()[0].indices.shape
    for _ in range(200):
        growing.append_edges([1, 2], [0, 3], {"weight": [1.0, 1.0]})
        growing.remove_edges([1, 2], [0, 3])
    assert growing.tables()[0].indices.shape == slots


def test_old_tables_are_dead_and_say_so():
    growing = GrowingGraph(from_edges([0], [1], 1000), np.zeros((1000, 1)))
    graph, _ = growing.tables()
    growing.append_edges([1], [0])
    growing.tables()
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(graph.degree)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.append_edges([0], [99], {"weight": [1.0]}), r"dst must be node ids in 0 .. 7, got 99"),
        (lambda g: g.append_edges([0], [], {"weight": [1.0]}), "one entry an edge each, got 1 and 0"),
        (lambda g: g.append_edges([0], [1]), r"edge_data must have \['weight'\], got \[\]"),
        (
            lambda g: g.append_edges([0], [1], {"weight": [[1.0]]}),
            r"'weight' must be \[1\], one number an edge, got \(1, 1\)",
        ),
        (lambda g: g.append_edges([0.5], [1], {"weight": [1.0]}), "src must hold integers, got float64"),
        (lambda g: g.append_nodes(np.ones((1, 9))), r"features must be \[num_new, 3\], got shape \(1, 9\)"),
        (lambda g: g.append_nodes(np.full((1, 3), np.nan), (), (), {"weight": []}), "must be finite"),
        (lambda g: g.append_nodes(np.ones((1, 3)), [9], [0], {"weight": [1]}), r"src must be .* 8, got 9"),
        (lambda g: g.remove_nodes([8]), r"nodes must be node ids in 0 .. 7, got 8"),
        (lambda g: g.remove_edges([7, 7], [7, 7]), r"no edge 7 -> 7 left to remove: 2 asked, 0 there"),
        (lambda g: GrowingGraph(g.graph(), np.ones((3, 3))), "one row a node, 8, got shape"),
    ],
)
def test_bad_calls_change_nothing_and_say_why(call, message: str):
    growing, listed = start()
    with pytest.raises(ValueError, match=message):
        call(growing)
    check(growing, listed)


@pytest.mark.slow
@pytest.mark.parametrize("fanouts", [None, (3, 100)])
def test_new_nodes_come_beside_a_graph_with_ids_to_spare(fanouts):
    """Three nodes, room for sixteen, and a hub; no id between the two is a node's."""
    for num_nodes in (3, 70):
        src = np.arange(num_nodes)
        growing = GrowingGraph(from_edges(src, np.zeros_like(src), num_nodes), np.eye(num_nodes, WIDTH))
        graph, table = growing.tables()
        assert growing.num_nodes == graph.num_nodes == num_nodes < graph.id_limit == len(table)
        model = GraphSAGE(hidden=4, out=2)
        params = model.init(
            jax.random.key(0), table, sample_blocks(jax.random.key(0), graph, jnp.asarray(src[:1]), (2, 2))
        )
        new = NewNodes(np.ones((2, WIDTH)), [0, 1, -1, -2], [-1, -1, -2, 0])
        got = embed_new(model, params, graph, table, new, fanouts)
        n = num_nodes
        rebuilt = from_edges(np.append(src, [0, 1, n, n + 1]), [0] * n + [n, n, n + 1, 0], n + 2)
        both = jnp.concatenate([table[:n], jnp.ones((2, WIDTH))])
        expected = model.apply(params, both, (full_block(rebuilt),) * 2)[n:]
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        for bad in (n, graph.id_limit - 1, graph.id_limit, graph.id_limit + 1, -3):
            for ends in (([0, bad], [-1, -1]), ([-1, -1], [0, bad])):
                with pytest.raises(ValueError, match=rf"must be node ids in 0 .. {n - 1}, or .*, got {bad}"):
                    embed_new(model, params, graph, table, NewNodes(np.ones((2, WIDTH)), *ends), fanouts)
        with pytest.raises(ValueError, match=f"features must have one row an id, {len(table)}, got shape"):
            embed_new(model, params, graph, jnp.asarray(growing.features()), new, fanouts)


@pytest.mark.parametrize("count", [1, 64, 65, 512, 513, 4097, 9000])
def test_any_number_of_changed_rows_reaches_the_device(count: int):
    mirror, rng = DeviceMirror(np.arange(40_000), 40_000), np.random.default_rng(0)
    mirror.device()
    for start in range(2):
        rows = rng.choice(40_000, count, replace=False)
        mirror.write(rows, -rows - start)
        np.testing.assert_array_equal(mirror.device(), mirror.host)
    assert (mirror.host < 0).sum() >= count - 1
