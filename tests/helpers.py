"""Tables that tests are parametrized over: a new graph, layout, draw or aggregator gets every test by a line.

All graphs have `NUM_NODES` nodes, so one compiled function serves them all.
"""

from collections.abc import Iterable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage import aggregate
from jsage._internal.versions import has_key_kind
from jsage.blocks import Indexed, as_segments, as_tree
from jsage.blocks.layout import Block
from jsage.blocks.reductions import Reduction, weighted_source
from jsage.graph import Graph, alias_tables, cumulate, from_edges
from jsage.graph.adjacency import Adjacency
from jsage.sampling import ByNode, Labor, Weighted, WeightedWithReplacement, draws, sample_neighbors
from jsage.typing import AnyDraw

NUM_NODES, FANOUT, WIDTH = 8, 4, 5

Edges = tuple[np.ndarray, np.ndarray, int]

sample_hop = jax.jit(sample_neighbors, static_argnums=3)


def slow_but(quick: list, cases: Iterable) -> list:
    """Cases for `parametrize`, all but some of them in the slow lane: those whose kin say nearly as much."""
    slow = lambda case: pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)  # noqa: E731
    return [case if case in quick else slow(case) for case in cases]


def _edges(*pairs: tuple[int, int]) -> Edges:
    src, dst = np.array(pairs, np.int32).reshape(-1, 2).T
    return src, dst, NUM_NODES


def _random_edges(num_edges: int = 40) -> Edges:
    src, dst = np.random.default_rng(0).integers(0, NUM_NODES, (2, num_edges), np.int32)
    return src, dst, NUM_NODES


AWKWARD: dict[str, Edges] = {
    "no edges": _edges(),
    "isolated nodes": _edges((1, 0), (2, 0), (0, 1), (2, 1), (3, 1), (0, 3)),
    "self-loops": _edges(*((v, v) for v in range(NUM_NODES)), (0, 1), (2, 1), (3, 4)),
    "parallel edges": _edges(*[(1, 0)] * 3, *[(2, 1)] * 6, (3, 1), *[(5, 5)] * 2),
    "one hub": _edges(*((u, 0) for u in range(1, NUM_NODES)), *((0, u) for u in range(1, NUM_NODES))),
    "random": _random_edges(),
    "fanout above the degree": _edges(*((u, (u + s) % NUM_NODES) for u in range(NUM_NODES) for s in (1, 3))),
}
"""name -> (src, dst, num_nodes)"""

DRAWS = {
    "without_replacement": draws.without_replacement,
    "with_replacement": draws.with_replacement,
    "latest": draws.latest,
}
"""name -> DrawFn"""

GRAPH_DRAWS = {
    "weighted": (cumulate, Weighted()),
    "weighted by node": (cumulate, Weighted(by_node=True)),
    "weighted with replacement": (alias_tables, WeightedWithReplacement()),
    "by node": (None, ByNode()),
    "labor": (None, Labor()),
    "labor of two candidates": (None, Labor(scan=2)),
}
"""name -> (what makes its graph, GraphDraw)"""

ALL_DRAWS: dict[str, AnyDraw] = {**DRAWS, **{name: draw for name, (_, draw) in GRAPH_DRAWS.items()}}
REPLACES = {"with_replacement", "weighted with replacement"}


def for_draw(name: str, graph: Graph) -> Adjacency:
    """The graph as the draw named reads it: with weights 1, 2 and 3 to draw by, where it does."""
    prepare = GRAPH_DRAWS[name][0] if name in GRAPH_DRAWS else None
    if prepare is None:
        return graph
    drawn = jax.device_put(1 + np.arange(graph.num_edges, dtype=np.int32) % 3)
    return prepare(graph._replace(edge_data={**graph.edge_data, "drawn": drawn}), "drawn")


AGGREGATORS = {
    "sum": aggregate.sum,
    "mean": aggregate.mean,
    "max": aggregate.max,
    "gcn": aggregate.gcn,
    "min": aggregate.min,
    "std": aggregate.std,
}
"""name -> (h, block) -> pooled"""

KEY_KINDS = ["threefry2x32", *filter(has_key_kind, ["philox4x32"])]
"""The kinds of keys that this jax has."""


def deviation(messages: np.ndarray) -> np.ndarray:
    """The standard deviation, and 0 where its square is at most 1e-5."""
    square = messages.var(0)
    return np.sqrt(np.where(square > 1e-5, square, 0))


REFERENCES = {
    "sum": lambda own, messages: messages.sum(0),
    "mean": lambda own, messages: messages.sum(0) / max(len(messages), 1),
    "max": lambda own, messages: messages.max(0) if len(messages) else 0 * own,
    "gcn": lambda own, messages: (own + messages.sum(0)) / (1 + len(messages)),
    "min": lambda own, messages: messages.min(0) if len(messages) else 0 * own,
    "std": lambda own, messages: deviation(messages) if len(messages) else 0 * own,
}
"""name -> (own row, messages [n, d]) -> pooled row, in NumPy"""

LAYOUTS = {
    "indexed": lambda block, table: (table, block),
    "tree": lambda block, table: (table[as_tree(block)[0]], as_tree(block)[1]),
    "segments of indexed": lambda block, table: (table, as_segments(block)),
    "segments of tree": lambda block, table: (table[as_tree(block)[0]], as_segments(as_tree(block)[1])),
}
"""name -> (indexed block, table) -> (h, block): the same hop, and the rows that it reads, in each layout"""


def listed(h: jax.Array, block: Block, most: int) -> tuple[jax.Array, jax.Array]:
    """Each destination's messages one after another, by a reduction whose order counts, and their mask."""

    def start(message, num_dst):
        return jnp.zeros(num_dst, jnp.int32), jnp.zeros((num_dst, most, *message.shape[1:]), message.dtype)

    def step(state, message, mask):
        count, rows = state
        here = (jnp.arange(most)[None] == count[:, None]) & mask[:, None]
        return count + mask.astype(jnp.int32), jnp.where(here[..., None], message[:, None], rows)

    ordered = Reduction(start, step, lambda state, degree, message: state)
    count, rows = block.reduce(weighted_source, ordered, None, h)
    return rows, jnp.arange(most)[None] < count[:, None]


def lay(layout: str, block: Indexed, table: jax.Array) -> tuple[jax.Array, Block]:
    """`h` and the block of a hop in the layout named; differentiable with respect to the table."""
    return LAYOUTS[layout](block, table)


def features(seed: int, rows: int = NUM_NODES, width: int = WIDTH) -> np.ndarray:
    """Normal float32 rows."""
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


@cache
def graph(name: str, *, weighted: bool = False) -> Graph:
    """A graph of `AWKWARD`, with a weight of either sign on each edge where asked."""
    src, dst, num_nodes = AWKWARD[name]
    weights = {"weight": features(7, len(src), 1)[:, 0]} if weighted else {}
    return from_edges(src, dst, num_nodes, **weights)


@cache
def hop(name: str, *, weighted: bool = False) -> Indexed:
    """One sampled hop of `FANOUT` slots into every node, the last node first."""
    seeds = np.arange(NUM_NODES, dtype=np.int32)[::-1]
    return sample_hop(jax.random.key(1), graph(name, weighted=weighted), seeds, FANOUT)


def messages(block: Indexed, table: np.ndarray, row: int) -> np.ndarray:
    """The valid neighbors' rows of one destination times their weights, by plain float64 NumPy."""
    block = jax.tree.map(np.asarray, block)
    valid = block.mask[row]
    rows = np.asarray(table, np.float64)[block.src[row][valid]]
    if "weight" not in block.edge_data:
        return rows
    return rows * block.edge_data["weight"][row].astype(np.float64)[valid, None]


def pooled(aggregator: str, block: Indexed, table: np.ndarray) -> np.ndarray:
    """What an aggregator of `REFERENCES` gives on every destination, one at a time in float64."""
    own, block = np.asarray(table, np.float64)[np.asarray(block.dst)], jax.tree.map(np.asarray, block)
    reduce = REFERENCES[aggregator]
    return np.stack([reduce(own[row], messages(block, table, row)) for row in range(block.num_dst)])
