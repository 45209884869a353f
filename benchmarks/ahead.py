"""The scanned training step compiled ahead of time for a device that is not here: shapes, no data."""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from benchmarks import pairs
from benchmarks.make_graph import SIZES
from benchmarks.step import Tables, make_step
from jsage import aggregate
from jsage.data import whole_lanes
from jsage.graph import Graph, SortedGraph
from jsage.nn import LSTM, GATConv, GATv2Conv, GINEConv, Pool, SAGEConv, TransformerConv
from jsage.nn.attention import AttentionConv
from jsage.sampling import fast_key
from jsage.sampling.negatives import AliasTable, Choice, Uniform
from jsage.typing import AggregateFn

FANOUTS, BATCH, STEPS = (25, 10), 1024, 192
DTYPES = ("float32", "bfloat16")
KINDS = ("labels", *pairs.KINDS)
AGGREGATORS: dict[str, Callable[[Any], AggregateFn]] = {
    "mean": lambda dtype: aggregate.mean,
    "sum": lambda dtype: aggregate.sum,
    "max": lambda dtype: aggregate.max,
    "gcn": lambda dtype: aggregate.gcn,
    "max_pool": lambda dtype: Pool(dtype=dtype),
    "mean_pool": lambda dtype: Pool(reduce=aggregate.mean, dtype=dtype),
    "lstm": lambda dtype: LSTM(dtype=dtype),
}
"""name -> dtype of the computation -> aggregator of `SAGEConv`"""
CONVOLUTIONS: dict[str, Any] = {
    "gat": GATConv,
    "gatv2": GATv2Conv,
    "transformer": TransformerConv,
    "gine": GINEConv,
}
"""Other convolutions; attention has `HEADS` heads."""
HEADS = 8


LISTS = ("offenders", "staged", "slots")


class Case(NamedTuple):
    """What is compiled: the rows are `width` numbers wide, as they lie on the device."""

    aggregator: str
    dtype: str
    num_nodes: int
    num_edges: int
    width: int
    num_classes: int
    kind: str = "labels"
    """What is learned from: labels, or pairs of `benchmarks.pairs`."""

    @property
    def table_sizes(self) -> set[int]:
        """Numbers in each table: features, labels, indptr, indices, and those that pairs are drawn from."""
        return {self.num_nodes * self.width, self.num_nodes, self.num_nodes + 1, self.num_edges}

    @property
    def logits(self) -> int:
        """Numbers in a batch's logits; of pairs, what `benchmarks.pairs` has as their limit."""
        if self.kind == "labels":
            return BATCH * self.num_classes
        return pairs.KINDS[self.kind].limit(BATCH)

    @property
    def slots(self) -> int:
        """Numbers in the input layer's `[num_dst, fanout, width]`, which no program should write."""
        return BATCH * (1 + FANOUTS[0]) * FANOUTS[1] * self.width


def options(name: str, description: str | None, lanes: int) -> argparse.ArgumentParser:
    """The command line; `lanes` is what rows are padded to by default."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=(description or "").split("\n")[0]
    )
    made.add_argument("--graph", type=Path, default=Path("products"), help="whose sizes: arxiv, reddit, ...")
    made.add_argument("--num-nodes", type=count, help="instead of that graph's; 3e9 is understood")
    made.add_argument("--num-edges", type=count, help="instead of that graph's")
    made.add_argument("--lanes", type=int, default=lanes, help="rows are padded to a multiple of this")
    made.add_argument("--aggregators", type=names, help="mean,max,...; all of them unless given")
    made.add_argument("--dtypes", type=names, help="of features and layers: float32,bfloat16")
    made.add_argument("--kinds", type=names, default=("labels",), help=f"some of {','.join(KINDS)}")
    made.add_argument("--double", action="store_true", help="compile for a graph twice as large, too")
    made.add_argument("--json", metavar="FILE", help="write the result there; - is standard output")
    return made


def count(text: str) -> int:
    """`18e9` as a whole number."""
    return int(float(text))


def names(text: str) -> tuple[str, ...]:
    """`mean,max` as a tuple."""
    return tuple(text.split(","))


def cases(chosen: argparse.Namespace) -> Iterator[Case]:
    """Each aggregator in each dtype; ValueError for one that is not there and for sizes beyond one device."""
    if (size := SIZES.get(str(chosen.graph))) is None:
        raise ValueError(f"no sizes of {chosen.graph}: expected one of {', '.join(SIZES)}")
    num_nodes, num_edges = chosen.num_nodes or size.num_nodes, chosen.num_edges or size.num_edges
    aggregators = known_aggregators(chosen.aggregators or (*AGGREGATORS, *CONVOLUTIONS))
    if unknown := [name for name in chosen.kinds if name not in KINDS]:
        raise ValueError(f"no kind {unknown[0]!r}: expected some of {', '.join(KINDS)}")
    most = max(num_nodes, num_edges) * (1 + chosen.double)
    if most >= 2**31:
        raise ValueError(f"one device counts nodes and edges in 32 bits, got {most}: stay below 2^31")
    width = whole_lanes(size.num_features, chosen.lanes)
    for kind, name, dtype in product(chosen.kinds, aggregators, chosen.dtypes or DTYPES):
        yield Case(name, dtype, num_nodes, num_edges, width, size.num_classes, kind)


def known_aggregators(found: tuple[str, ...]) -> tuple[str, ...]:
    """The names, or ValueError."""
    known = (*AGGREGATORS, *CONVOLUTIONS)
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"no aggregator {unknown[0]!r}: expected some of {', '.join(known)}")
    return found


def rows(
    chosen: argparse.Namespace,
    device: Any,
    look: Callable[[str, Case], dict[str, list[str]]],
    labels: dict[str, str],
) -> Iterator[dict]:
    """A row for each case; `look(text, case)` names what the compiled program should not hold."""
    for case in cases(chosen):
        row = labels | {"device": device.device_kind} | measure(case, device, look)
        if chosen.double:
            twice = case._replace(num_nodes=2 * case.num_nodes, num_edges=2 * case.num_edges)
            again = measure(twice, device, look)
            row |= {f"doubled_{name}": again[name] for name in ("temp_bytes", *LISTS) if name in again}
        yield row


def measure(case: Case, device: Any, look: Callable[[str, Case], dict[str, list[str]]]) -> dict:
    """Compile one case for a device."""
    start = time.perf_counter()
    compiled = compile_step(case, device)
    memory: Any = compiled.memory_analysis()
    return {
        **case._asdict(),
        "compile_seconds": time.perf_counter() - start,
        "argument_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        **look(compiled.as_text() or "", case),
    }


def compile_step(case: Case, device: Any) -> jax.stages.Compiled:
    """The epoch of `benchmarks.step`, or of `benchmarks.pairs`, on trees, for one device."""
    step, tables, batches = labels(case) if case.kind == "labels" else linked(case)
    key = jax.eval_shape(lambda: fast_key(0))
    state = jax.eval_shape(step.start, key, tables)
    arguments = on_device((state, tables, *batches), device)
    return jax.jit(step.epoch, donate_argnums=0).lower(*arguments).compile()


def labels(case: Case) -> tuple[Any, PyTree, tuple]:
    """The step on labels, and the shapes of its tables and batches."""
    step = make_step(FANOUTS, case.num_classes, layers=layers(case.aggregator, case.dtype))
    tables = Tables(*nodes_and_edges(case), shape(case.num_nodes))
    return step, tables, (shape(STEPS, BATCH), shape(STEPS, BATCH, dtype=jnp.bool_))


def linked(case: Case) -> tuple[Any, PyTree, tuple]:
    """A step on pairs, and the shapes of its tables and batches; every node has an edge."""
    sizes = pairs.Sizes(FANOUTS, BATCH)
    step = pairs.make_pair_step(case.kind, sizes, layers(case.aggregator, case.dtype)["conv"])
    noise = AliasTable(shape(case.num_nodes, dtype=jnp.uint32), shape(case.num_nodes))
    starts: Any = Choice(shape(case.num_nodes), Uniform(shape(), shape()))
    edges = (pairs.KINDS[case.kind].count(BATCH), 2) if case.kind.startswith("links") else ()
    return step, pairs.PairTables(*nodes_and_edges(case), starts, noise), (shape(STEPS, *edges),)


def layers(name: str, dtype: str) -> dict[str, Any]:
    """Options of the model: what makes its layers, and its last one, whose heads are averaged."""
    found = None if dtype == "float32" else jnp.dtype(dtype)
    if name in AGGREGATORS:
        return {"conv": partial(SAGEConv, aggregate=AGGREGATORS[name](found), dtype=found)}
    conv = partial(CONVOLUTIONS[name], dtype=found)
    if not issubclass(CONVOLUTIONS[name], AttentionConv):
        return {"conv": conv}
    return {"conv": partial(conv, heads=HEADS), "last_conv": partial(conv, heads=HEADS, concat=False)}


def nodes_and_edges(case: Case) -> tuple[Graph, Any]:
    """The shapes of a graph and its features."""
    graph = SortedGraph(shape(case.num_nodes + 1), shape(case.num_edges), {})
    return graph, shape(case.num_nodes, case.width, dtype=jnp.dtype(case.dtype))


def shape(*sizes: int, dtype: Any = jnp.int32) -> Any:
    """An array that is not here."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def on_device(shapes: PyTree, device: Any) -> PyTree:
    """The same shapes, on one device."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
