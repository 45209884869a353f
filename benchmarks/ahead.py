"""The scanned training step compiled ahead of time for a device that is not here: shapes, no data."""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from benchmarks.make_graph import SIZES
from benchmarks.step import Tables, make_step
from jsage import aggregate
from jsage.graph import Graph
from jsage.nn import LSTM, Pool
from jsage.place import whole_lanes
from jsage.typing import AggregateFn

FANOUTS, BATCH, STEPS = (25, 10), 1024, 192
AGGREGATORS: dict[str, Callable[[Any], AggregateFn]] = {
    "mean": lambda dtype: aggregate.mean,
    "sum": lambda dtype: aggregate.sum,
    "max": lambda dtype: aggregate.max,
    "gcn": lambda dtype: aggregate.gcn,
    "max_pool": lambda dtype: Pool(dtype=dtype),
    "mean_pool": lambda dtype: Pool(reduce=aggregate.mean, dtype=dtype),
    "lstm": lambda dtype: LSTM(dtype=dtype),
}
"""name -> dtype of the computation -> aggregator"""


LISTS = ("offenders", "staged", "slots")


class Case(NamedTuple):
    """What is compiled: the rows are `width` numbers wide, as they lie on the device."""

    aggregator: str
    dtype: str
    num_nodes: int
    num_edges: int
    width: int
    num_classes: int

    @property
    def table_sizes(self) -> set[int]:
        """Numbers in each table: features, labels, indptr, indices."""
        return {self.num_nodes * self.width, self.num_nodes, self.num_nodes + 1, self.num_edges}

    @property
    def logits(self) -> int:
        """Numbers in a batch's logits."""
        return BATCH * self.num_classes

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
    made.add_argument("--aggregators", type=names, default=tuple(AGGREGATORS), help="mean,max,...")
    made.add_argument("--dtypes", type=names, default=("float32", "bfloat16"), help="of features and layers")
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
    if unknown := [name for name in chosen.aggregators if name not in AGGREGATORS]:
        raise ValueError(f"no aggregator {unknown[0]!r}: expected some of {', '.join(AGGREGATORS)}")
    most = max(num_nodes, num_edges) * (1 + chosen.double)
    if most >= 2**31:
        raise ValueError(f"one device counts nodes and edges in 32 bits, got {most}: stay below 2^31")
    width = whole_lanes(size.num_features, chosen.lanes)
    for name in chosen.aggregators:
        for dtype in chosen.dtypes:
            yield Case(name, dtype, num_nodes, num_edges, width, size.num_classes)


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
    """`benchmarks.step`'s epoch, on trees, for one device."""
    dtype = jnp.dtype(case.dtype)
    compute = None if dtype == jnp.float32 else dtype
    step = make_step(
        FANOUTS, case.num_classes, aggregate=AGGREGATORS[case.aggregator](compute), dtype=compute
    )

    def shape(*sizes: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    graph = Graph(shape(case.num_nodes + 1), shape(case.num_edges), {})
    tables = Tables(graph, shape(case.num_nodes, case.width, dtype=dtype), shape(case.num_nodes))
    key = jax.eval_shape(lambda: jax.random.key(0, impl="philox4x32"))
    state = jax.eval_shape(step.start, key, tables)
    batches = shape(STEPS, BATCH), shape(STEPS, BATCH, dtype=jnp.bool_)
    arguments = on_device((state, tables, *batches), device)
    return jax.jit(step.epoch, donate_argnums=0).lower(*arguments).compile()


def on_device(shapes: PyTree, device: Any) -> PyTree:
    """The same shapes, on one device."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
