"""Graphs with types: each relation's edges as they were given, and errors that name the relation."""

import re

import jax
import numpy as np
import pytest

from jsage.graph import add_reverse, edges, typed_graph

BUYS, KNOWS = ("user", "buys", "item"), ("user", "knows", "user")
SIZES = {"user": 3, "item": 5, "shop": 0}
EDGES = {KNOWS: ([0, 1, 2, 0], [1, 1, 0, 2]), BUYS: ([0, 2, 2], [4, 0, 4])}


def test_a_relation_has_its_edges_over_its_destinations():
    weight = np.array([0.5, 1.5, 2.5], np.float32)
    graph = typed_graph(SIZES, EDGES, edge_data={BUYS: {"weight": weight}})
    assert graph.relations == [BUYS, KNOWS]
    assert {name: graph.num_nodes(name) for name in graph.nodes} == SIZES
    buys = graph.edges[BUYS]
    assert (buys.indptr.tolist(), buys.indices.tolist()) == ([0, 1, 1, 1, 1, 3], [2, 0, 2])
    assert buys.edge_data["weight"].tolist() == [1.5, 0.5, 2.5]
    assert graph.edges[KNOWS].indptr.shape == (4,)


def test_it_is_an_argument_of_compiled_functions():
    graph = typed_graph(SIZES, EDGES)
    out = jax.jit(lambda graph: graph)(graph)
    assert out.relations == graph.relations
    assert (out.num_nodes("shop"), out.num_nodes("item")) == (0, 5)


@pytest.mark.parametrize("sizes", [{"user": 3, "item": 5}, {"user": 5, "item": 3}])
def test_reverse_relations_have_the_same_edges_turned(sizes: dict):
    ends = (np.array([0, 2, 2, 1]), np.array([2, 0, 2, 1]))
    age = np.arange(4, dtype=np.int32)
    graph = add_reverse(typed_graph(sizes, {BUYS: ends}, edge_data={BUYS: {"age": age}}))
    turned = graph.edges["item", "rev_buys", "user"]
    src, dst = map(np.asarray, edges(turned))
    found = sorted(zip(dst.tolist(), src.tolist(), turned.edge_data["age"].tolist(), strict=True))
    assert found == sorted(zip(*(x.tolist() for x in (*ends, age)), strict=True))
    assert turned.indptr.shape == (sizes["user"] + 1,)
    assert add_reverse(typed_graph(SIZES, {KNOWS: ([0], [1])})).relations == [
        KNOWS,
        ("user", "rev_knows", "user"),
    ]


FIRST = "relation ('user', 'buys', 'item')"
BAD = {
    "source out of range": ({BUYS: ([3], [0])}, f"{FIRST}: src must be ids of 'user' in 0 .. 2, got 3"),
    "destination out of range": ({BUYS: ([0], [5])}, f"{FIRST}: dst must be ids of 'item' in 0 .. 4, got 5"),
    "in the other type's range": (
        {("item", "of", "user"): ([4], [4])},
        "relation ('item', 'of', 'user'): dst must be ids of 'user' in 0 .. 2, got 4",
    ),
    "no nodes": ({("shop", "sells", "item"): ([0], [0])}, "relation ('shop', 'sells', 'item'): src"),
    "no integers": ({BUYS: (np.array([0.5]), [0])}, f"{FIRST}: src"),
    "ragged": ({BUYS: ([0, 1], [0])}, f"{FIRST}: "),
    "unknown type": (
        {("user", "in", "city"): ([0], [0])},
        "relation ('user', 'in', 'city'): type 'city' has no size",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_name_the_relation(case: str):
    given, message = BAD[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        typed_graph(SIZES, given)


def test_other_errors():
    with pytest.raises(ValueError, match=r"relation \('user', 'buys', 'item'\): .*weight.* 3 rows"):
        typed_graph(SIZES, EDGES, edge_data={BUYS: {"weight": np.ones(2, np.float32)}})
    with pytest.raises(ValueError, match=r"edge_data names relation \('a', 'b', 'c'\)"):
        typed_graph(SIZES, EDGES, edge_data={("a", "b", "c"): {}})
    with pytest.raises(ValueError, match="size of type 'user'"):
        typed_graph({"user": -1}, {})
    with pytest.raises(ValueError, match=r"relation \('user', 'knows', 'user'\): its reverse would be"):
        add_reverse(typed_graph(SIZES, EDGES), prefix="")
