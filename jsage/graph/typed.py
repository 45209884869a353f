"""A graph whose nodes and edges have types: one graph a relation; made on the host, in NumPy, once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float

from jsage._internal.checks import INT32, check_ids
from jsage.graph.graph import Graph, edges, from_edges
from jsage.typing import EdgeType, HostArray

Ends: TypeAlias = HostArray | Sequence[int]


class TypedGraph(NamedTuple):
    """The edges of each relation `(source type, relation, destination type)`, and how many nodes a type has.

    `edges[relation]` is a `Graph` over the destinations of the relation, `indptr` of one row each, whose
    `indices` are ids of the source type; ids count from 0 in each type. Relations and types are sorted by
    name. Features stay beside it, a table a type. Make one with `typed_graph`.

    >>> graph = typed_graph({"user": 2, "item": 3}, {("user", "buys", "item"): ([0, 1], [2, 2])})
    >>> graph.edges["user", "buys", "item"].indptr.tolist(), graph.num_nodes("item")
    ([0, 0, 0, 2], 3)
    """

    edges: Mapping[EdgeType, Graph]
    nodes: Mapping[str, Float[Array, "num_nodes 0"]]
    """An array without columns a type, so that its size is a shape."""

    @property
    def relations(self) -> list[EdgeType]:
        """The relations, sorted."""
        return sorted(self.edges)

    def num_nodes(self, node_type: str) -> int:
        """The number of nodes of a type."""
        return self.nodes[node_type].shape[0]


def typed_graph(
    sizes: Mapping[str, int],
    edges: Mapping[EdgeType, tuple[Ends, Ends]],
    *,
    edge_data: Mapping[EdgeType, Mapping[str, HostArray]] | None = None,
) -> TypedGraph:
    """The graph of `edges[relation] = (src, dst)`, between types of `sizes[type]` nodes.

    `src`: ids of the relation's source type; `dst`: of its destination type. `edge_data[relation]` has named
    arrays of one row an edge. Raises ValueError, which names the relation, for types without a size, ids that
    are no integers or out of range, ragged arrays and data that `from_edges` refuses.

    >>> graph = typed_graph({"user": 2, "item": 3}, {("user", "buys", "item"): ([0, 1], [2, 0])})
    >>> graph.edges["user", "buys", "item"].indices.tolist()
    [1, 0]
    >>> typed_graph({"user": 2, "item": 3}, {("user", "buys", "item"): ([2], [0])})
    Traceback (most recent call last):
    ValueError: relation ('user', 'buys', 'item'): src must be ids of 'user' in 0 .. 1, got 2
    """
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or not 0 <= size < INT32:
            raise ValueError(f"the size of type {name!r} must be an integer in 0 .. 2^31 - 1, got {size!r}")
    data = edge_data or {}
    if unknown := [relation for relation in data if relation not in edges]:
        raise ValueError(
            f"edge_data names relation {unknown[0]}, which is not in edges: pass its (src, dst) too"
        )
    made = {}
    for relation in sorted(edges):
        try:
            made[relation] = _related(relation, sizes, edges[relation], data.get(relation, {}))
        except ValueError as error:
            raise ValueError(f"relation {relation}: {error}") from error
    nodes = {name: jax.device_put(np.zeros((sizes[name], 0), np.float32)) for name in sorted(sizes)}
    return TypedGraph(made, nodes)


def add_reverse(graph: TypedGraph, prefix: str = "rev_") -> TypedGraph:
    """The graph with a relation more for each: `(a, r, b)` turned into `(b, prefix + r, a)`, data with it.

    Raises ValueError where the graph has a relation of that name.

    >>> graph = typed_graph({"user": 2, "item": 3}, {("user", "buys", "item"): ([0, 1], [2, 2])})
    >>> add_reverse(graph).edges["item", "rev_buys", "user"].indices.tolist()
    [2, 2]
    """
    sizes = {name: graph.num_nodes(name) for name in graph.nodes}
    made = dict(graph.edges)
    for source, name, target in graph.relations:
        turned = target, prefix + name, source
        if turned in made:
            raise ValueError(
                f"relation {source, name, target}: its reverse would be {turned}, which the graph has: "
                "pass another prefix, or reverse before that is added"
            )
        one = graph.edges[source, name, target]
        src, dst = map(np.asarray, edges(one))
        data = {name: np.asarray(values) for name, values in one.edge_data.items()}
        made[turned] = _related(turned, sizes, (dst, src), data)
    return TypedGraph({relation: made[relation] for relation in sorted(made)}, graph.nodes)


def _related(
    relation: EdgeType, sizes: Mapping[str, int], ends: tuple[Any, Any], data: Mapping[str, Any]
) -> Graph:
    source, _, target = relation
    for name in (source, target):
        if name not in sizes:
            raise ValueError(f"type {name!r} has no size, expected one of {sorted(sizes)}: add it to sizes")
    src = check_ids(ends[0], sizes[source], "src", what=f"ids of {source!r}")
    dst = check_ids(ends[1], sizes[target], "dst", what=f"ids of {target!r}")
    square = from_edges(src, dst, max(sizes[source], sizes[target]), **data)
    return square._replace(indptr=jax.device_put(np.asarray(square.indptr)[: sizes[target] + 1]))
