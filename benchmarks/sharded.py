"""The training step on a mesh, compiled ahead of time for chips that are not here: shapes, no data."""

import argparse
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from benchmarks import ahead, hlo
from benchmarks.make_graph import SIZES
from jsage.blocks import Tree
from jsage.graph import Location
from jsage.losses import cross_entropy, masked_mean
from jsage.nn import GraphSAGE
from jsage.parallel import (
    ShardedFeatures,
    ShardedGraph,
    Workload,
    estimate_memory,
    fetch,
    global_loss,
    make_mesh,
    on_mesh,
    sample_blocks,
)
from jsage.parallel.features import CachedRows
from jsage.train import TrainState, init_state, make_update, train_epoch
from jsage.typing import Metrics

STEPS, HIDDEN = 4, 256
OPTIMIZER = optax.adam(0.003)
LINKS = {"v5e": (4 * 50e9, 16)}
"""Bytes/s that a chip sends over all its links, and how long an axis is whose ends are joined.

1,600 Gbit/s over four ports, in 2D: https://cloud.google.com/tpu/docs/v5e
"""


class Tables(NamedTuple):
    """What a step reads, each device its part."""

    graph: ShardedGraph
    features: ShardedFeatures


class Case(NamedTuple):
    """What is compiled."""

    aggregator: str
    dtype: str
    num_classes: int
    load: Workload

    @property
    def model(self) -> GraphSAGE:
        layers = ahead.layers(self.aggregator, self.dtype)
        return GraphSAGE(HIDDEN, self.num_classes, num_layers=len(self.load.fanouts), **layers)

    @property
    def table_sizes(self) -> set[int]:
        """Numbers in each table of one device that grows with the graph."""
        rows = self.load.rows
        return {rows * self.load.width, rows, rows + 1, self.load.edges}


def wanted(chosen: argparse.Namespace) -> bool:
    """Whether all chips share the graph: where `--mesh` says so, or where one chip cannot count it."""
    return chosen.mesh or max(chosen.num_nodes or 0, chosen.num_edges or 0) >= 2**31


def rows(chosen: argparse.Namespace, devices: Sequence[Any], topology: str) -> Iterator[dict]:
    """A row for each aggregator and dtype, mean and bfloat16 unless others are named."""
    if chosen.kinds != ("labels",):
        raise ValueError(f"a mesh trains on labels, got the kinds {chosen.kinds}: leave --kinds out")
    for case in cases(chosen, len(devices)):
        row = measure(case, devices, topology)
        if chosen.double:
            load = case.load._replace(num_nodes=2 * case.load.num_nodes, num_edges=2 * case.load.num_edges)
            again = measure(case._replace(load=load), devices, topology)
            row |= {f"doubled_{name}": again[name] for name in ("temp_bytes", *ahead.LISTS) if name in again}
        yield row


def cases(chosen: argparse.Namespace, chips: int) -> Iterator[Case]:
    """Those that the command line names; ValueError for an aggregator that is not there."""
    size = SIZES[str(chosen.graph)]
    load = Workload(
        chosen.num_nodes or size.num_nodes,
        chosen.num_edges or size.num_edges,
        chips,
        chosen.num_features,
        lanes=chosen.lanes,
        num_cached=chosen.num_cached,
        seeds=chosen.seeds,
        fanouts=ahead.FANOUTS,
        steps=STEPS,
    )
    for name, dtype in product(
        ahead.known_aggregators(chosen.aggregators or ("mean",)), chosen.dtypes or ("bfloat16",)
    ):
        case = Case(name, dtype, size.num_classes, load._replace(itemsize=jnp.dtype(dtype).itemsize))
        sizes = jax.tree.leaves(jax.eval_shape(partial(start, case)).params)
        yield case._replace(load=case.load._replace(num_parameters=sum(x.size for x in sizes)))


def measure(case: Case, devices: Sequence[Any], topology: str) -> dict:
    """Compile one case for all chips of a topology; bytes are those of one chip."""
    began, load = time.perf_counter(), case.load
    compiled = compile_epoch(case, make_mesh(devices))
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    items = estimate_memory(load)
    return {
        "topology": topology,
        "device": devices[0].device_kind,
        "chips": len(devices),
        **{name: getattr(case, name) for name in ("aggregator", "dtype", "num_classes")},
        **{name: getattr(load, name) for name in ("num_nodes", "num_edges", "width", "seeds", "num_cached")},
        "fanouts": list(load.fanouts),
        "capacities": list(load.slots),
        "compile_seconds": time.perf_counter() - began,
        "argument_bytes": memory.argument_size_in_bytes,
        "billed_bytes": sum(items[name] for name in ("graph", "features", "cache", "model", "batches")),
        "temp_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        **links(text, topology, len(devices)),
        "offenders": hlo.offenders(text, case.table_sizes, load.frontiers[-1]),
        "staged": hlo.staged(text, case.table_sizes),
        "largest": hlo.largest(text),
    }


def links(text: str, topology: str, chips: int) -> dict:
    """The collectives of a program, and the bytes that a chip sends for them in a step without overflow.

    A scan of steps is one loop, and the rounds of an exchange are a loop in it, which runs once unless ids
    overflow: `round_bytes` is one round of each exchange. Of an `all_to_all` the chip's own part stays; an
    `all_reduce` goes around twice, as a ring's. `link_seconds` is at the bandwidth of the chip's links;
    `bisection_seconds` at that of the links between the halves of the slice, over which half of what is
    exchanged must go.
    """
    found = hlo.collectives(text)
    counts = {kind: sum(one.kind == kind for one in found) for kind in sorted({one.kind for one in found})}
    sent = [one.bytes * (2 if one.kind == "all-reduce" else 1) * (chips - 1) / chips for one in found]
    of_step, of_round = (
        sum(size for one, size in zip(found, sent, strict=True) if one.loops >= loops) for loops in (1, 2)
    )
    row = {"collectives": counts, "collective_bytes": round(of_step), "round_bytes": round(of_round)}
    kind, _, shape = topology.partition(":")
    if kind in LINKS:
        row["link_seconds"] = of_step / LINKS[kind][0]
        row["bisection_seconds"] = of_step * chips / 4 / bisection(kind, shape)
    return row


def bisection(kind: str, shape: str) -> float:
    """Bytes/s from one half of a slice to the other, cut across its longest axis; one link is a fourth."""
    sent, ring = LINKS[kind]
    sizes = sorted(int(size) for size in shape.split("x"))
    return prod(sizes[:-1]) * (2 if sizes[-1] >= ring else 1) * sent / 4


def compile_epoch(case: Case, mesh: Mesh) -> jax.stages.Compiled:
    """A scan of steps on sharded tables."""
    (axis,) = mesh.axis_names
    given = (
        laid(jax.eval_shape(partial(start, case)), mesh),
        Tables(laid(graph_shapes(case.load), mesh, axis), feature_shapes(case, mesh)),
        laid(batch_shapes(case.load), mesh, None, axis),
    )
    run = on_mesh(partial(epoch, case), mesh, given)
    return jax.jit(run, donate_argnums=0).lower(*given).compile()


def start(case: Case) -> TrainState:
    """The state of a model; its key is Threefry's, which every compiler takes inside `on_mesh`."""
    sizes = [1]
    for fanout in case.load.fanouts:
        sizes.append(sizes[-1] * (1 + fanout))
    blocks = [Tree(jnp.ones((n, f), bool)) for n, f in zip(sizes, case.load.fanouts, strict=False)]
    rows = jnp.ones((sizes[-1], case.load.width), jnp.dtype(case.dtype))
    key = jax.random.key(0)
    return init_state(key, case.model.init(key, rows, tuple(reversed(blocks))), OPTIMIZER)


def epoch(case: Case, state: TrainState, tables: Tables, batches: PyTree) -> tuple[TrainState, Metrics]:
    """Sampled at the owners, rows fetched, gradients summed."""
    load = case.load

    def loss_fn(params, stats, batch, key):
        seeds, labels, valid = batch
        ids, blocks, hops = sample_blocks(key, tables.graph, seeds, load.fanouts, load.slots[:-1])
        rows, last = fetch(tables.features, ids, load.slots[-1])
        logits: Any = case.model.apply(params, rows, blocks, rngs={"order": key})
        losses = cross_entropy(logits, labels, valid)
        overflow = sum((hop.overflow for hop in hops), last.overflow)
        sums = {"loss": losses.sum(), "weight": jnp.float32(valid.sum()), "overflow": overflow}
        return masked_mean(losses, valid), (sums, stats)

    return train_epoch(make_update(global_loss(loss_fn), OPTIMIZER), state, batches)


def graph_shapes(load: Workload) -> ShardedGraph:
    """As `shard_graph` gives them, of all shards."""
    num_edges, num_rows = load.shards * load.edges, load.shards * load.rows
    words = [ahead.shape(num_edges)]
    if load.word_bytes > 4:
        words.append(ahead.shape(num_edges, dtype=jnp.int16 if load.word_bytes == 6 else jnp.int32))
    names = [ahead.shape(num_rows, dtype=jnp.uint32)] * (1 if load.num_nodes <= 2**32 else 2)
    return ShardedGraph(ahead.shape(num_rows + load.shards), tuple(words), tuple(names), {})


def feature_shapes(case: Case, mesh: Mesh) -> ShardedFeatures:
    """As `shard_features` gives them."""
    load, dtype = case.load, jnp.dtype(case.dtype)
    table = laid(ahead.shape(load.shards * load.rows, load.width, dtype=dtype), mesh, *mesh.axis_names)
    copies = ahead.shape(load.num_cached, load.width, dtype=dtype)
    hot = (
        CachedRows(copies, ahead.shape(load.num_cached), ahead.shape(load.shards + 1))
        if load.num_cached
        else None
    )
    return ShardedFeatures(table, laid(hot, mesh))


def batch_shapes(load: Workload) -> tuple[Location, Array, Array]:
    """Seeds, their labels, and which are valid."""
    ids = ahead.shape(load.steps, load.shards * load.seeds)
    return Location(ids, ids), ids, ahead.shape(*ids.shape, dtype=jnp.bool_)


def laid(shapes: PyTree, mesh: Mesh, *axes: str | None) -> PyTree:
    """The same shapes, on a mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
