"""Every public model and type is pickled and copied: the table is made of `tests/public_names.txt`."""

import copy
import importlib
import inspect
import pickle
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import jsage
from jsage.blocks import MAX, SOFTMAX_SUM, SUM, Reduction, aggregate, sliced_full_block
from jsage.data import Shards
from jsage.graph import GrowingGraph, Hashed, Placement, Ranges, SortedGraph, TimeSortedGraph
from jsage.nn import DeepGraphInfomax, GraphSAGE, SAGEConv, Several
from jsage.sampling import Labor, host_loader
from jsage.serving import runtime

NAMES = (Path(__file__).parent / "public_names.txt").read_text().split()
GRAPH = jsage.from_edges([0, 1, 2, 3], [1, 2, 3, 0], 4, time=[3, 1, 2, 4])
X = np.eye(4, 3, dtype=np.float32)


def public(name: str) -> Any:
    """What a public name stands for; rooms that the face does not import are imported."""

    def step(where: Any, part: str) -> Any:
        if not hasattr(where, part):
            importlib.import_module(f"{where.__name__}.{part}")
        return getattr(where, part)

    return reduce(step, name.split(".")[1:], jsage)


def kinds() -> list[type]:
    """The classes among the public names, but for protocols, which no one makes."""
    found = dict.fromkeys(kind for kind in map(public, NAMES) if inspect.isclass(kind))
    return [kind for kind in found if kind.__module__[:5] == "jsage" and not getattr(kind, "_is_protocol", 0)]


def numbered(kind: Any) -> Any:
    """A tuple of arrays, no two alike."""
    return kind(*(np.arange(i, i + 3) for i, _ in enumerate(kind._fields)))


def module(kind: Any) -> Any:
    """A module with a number for each field that has no default."""
    needed = [
        name for name, field in inspect.signature(kind).parameters.items() if field.default is field.empty
    ]
    return kind(**dict.fromkeys(needed, 4))


def model() -> GraphSAGE:
    conv = partial(SAGEConv, aggregate=aggregate.max, normalize=True)
    return GraphSAGE(5, 3, conv=conv, norm=nn.LayerNorm, residual=True, jump=jsage.nn.jump_max, dropout=0.5)


def sage(relation: tuple[str, str, str]) -> partial[SAGEConv]:
    return partial(SAGEConv, 5)


MADE: dict[type, Callable[[], Any]] = {
    jsage.nn.HeteroConv: lambda: jsage.nn.HeteroConv(sage, combine="max"),
    GraphSAGE: model,
    DeepGraphInfomax: lambda: DeepGraphInfomax(model()),
    jsage.nn.EventFeatures: lambda: jsage.nn.EventFeatures(jsage.nn.Time2Vec(4), beside=("sign",)),
    Several: lambda: Several((aggregate.mean, aggregate.max)),
    Reduction: lambda: (SUM, MAX, SOFTMAX_SUM),
    Hashed: lambda: Hashed(4, 2),
    Placement: lambda: jsage.graph.balanced(np.arange(4), 2),
    Ranges: lambda: jsage.graph.contiguous(4, 2),
    SortedGraph: lambda: jsage.graph.sort_rows(GRAPH),
    TimeSortedGraph: lambda: jsage.graph.sort_by_time(GRAPH),
    GrowingGraph: lambda: GrowingGraph(GRAPH, X),
    jsage.blocks.SlicedBlock: lambda: sliced_full_block(GRAPH, rows=2, limit=2),
    Shards: lambda: Shards(Path("x"), Hashed(4, 2), 4, {}, {}, None, None, {}),
    Labor: lambda: Labor(True, jax.random.key(3)),
}
"""How those are made that numbers do not make."""
OPEN = {host_loader.Loader, runtime.Artifact, runtime.Embedder}
"""Threads and loaded programs, which belong to a process: opened again from their files."""


def same(one: Any, other: Any) -> bool:
    """Types and arrays alike, and whatever else equal."""
    if isinstance(one, GrowingGraph):
        return same((one.graph(), one.features()), (other.graph(), other.features()))
    if isinstance(one, nn.Module):
        return repr(one) == repr(other) and all(
            same(getattr(one, name), getattr(other, name))
            for name in one.__dataclass_fields__
            if name != "parent"
        )
    if isinstance(one, partial):
        return same((one.func, one.args, one.keywords), (other.func, other.args, other.keywords))
    if isinstance(one, tuple | dict):
        keys, others = (x if isinstance(x, dict) else dict(enumerate(x)) for x in (one, other))
        return keys.keys() == others.keys() and all(same(keys[name], others[name]) for name in keys)
    if isinstance(one, np.ndarray | jax.Array):
        return one.dtype == other.dtype and bool((one == other).all())
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    "kind",
    [kind for kind in kinds() if kind not in OPEN],
    ids=lambda kind: f"{kind.__module__}.{kind.__name__}",
)
def test_copies_are_what_was_copied(kind):
    one = MADE.get(kind, partial(module if issubclass(kind, nn.Module) else numbered, kind))()
    for again in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert type(again) is type(one)
        assert same(again, one), again


def test_a_copy_of_a_growing_graph_grows_alone():
    one = GrowingGraph(GRAPH, X)
    one.tables()
    for again in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        again.append_nodes(X[:1], [4], [0], {"time": [7]})
        graph, _ = again.tables()
        assert (int(graph.num_nodes), int(graph.degree[0])) == (5, 2)
        assert (one.num_nodes, one.num_edges) == (4, 4)
        assert int(one.tables()[0].degree[0]) == 1


def test_the_table_has_no_more_than_there_is():
    assert MADE.keys() | OPEN <= {*kinds()}
