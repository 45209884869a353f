"""How a step's time and memory grow: with the graph at a fixed degree, and with fanouts, batch and depth.

    python -m benchmarks.scaling --graph graphs/arxiv --json scaling.json

Rows of kind `nodes` are on uniform random graphs made here: every neighbour of a batch is somewhere else in
the tables, the worst there is for caches. Larger tables fit caches less, so a step is slower however it is
written: `explained_seconds` is the smallest graph's step plus what its reads of features and edges cost more
at the rates of random reads that this graph's tables allow, and `ratio_beyond_caches` compares the step to
it. All other kinds are on `--graph`, on trees and compacted.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import (
    alternate,
    gather_rate,
    parser,
    peak_rss_bytes,
    reset_peak_rss,
    run,
    summary,
    temp_bytes,
)
from benchmarks.step import Tables, make_step, num_classes, place
from jsage import data
from jsage.batch import epoch
from jsage.compact import Capacities, measure_capacities
from jsage.graph import Graph

BASE = (1024, (25, 10))
VARIED: dict[str, list[tuple[int, tuple[int, ...]]]] = {
    "fanouts": [(1024, fanouts) for fanouts in ((5, 5), (10, 10), (15, 10), (25, 10), (25, 25))],
    "batch_size": [(size, (25, 10)) for size in (256, 512, 1024, 2048, 4096)],
    "depth": [(1024, (5,) * depth) for depth in (1, 2, 3, 4)],
}
CLASSES, STEPS = 40, 16
KEY = partial(jax.random.key, impl="philox4x32")


def main(options: argparse.Namespace) -> list[dict]:
    """First the kinds that vary on `--graph`, then growing graphs."""
    rows = list(vary(options)) if options.kinds != ["nodes"] else []
    if "nodes" in options.kinds:
        rows += explain([nodes(size, options) for size in options.nodes])
    return rows


def vary(options: argparse.Namespace) -> Iterator[dict]:
    """Rows of fanouts, batch size and depth; both forms take turns."""
    dataset = data.open(options.graph)
    tables, train, classes = place(dataset), jnp.asarray(dataset.train), num_classes(dataset)
    for kind in (kind for kind in options.kinds if kind != "nodes"):
        for batch_size, fanouts in VARIED[kind]:
            capacities: dict[str, Capacities | None] = {"trees": None}
            if len(fanouts) > 1:
                found = measure_capacities(KEY(1), tables.graph, train, batch_size, fanouts)
                capacities["compacted"] = found
            rows = measure(tables, train, (batch_size, fanouts, classes), capacities, options)
            yield from ({"kind": kind, **row} for row in rows)


def nodes(size: int, options: argparse.Namespace) -> dict:
    """The row of a random graph of this size, and the random-access bandwidth of its tables."""
    reset_peak_rss()
    tables = random_tables(size, options.degree, options.num_features)
    train = np.random.default_rng(1).choice(size, min(size, STEPS * BASE[0]), replace=False).astype(np.int32)
    (row,) = measure(tables, jnp.asarray(train), (*BASE, CLASSES), {"trees": None}, options)
    rates = {"gather_bytes_per_second": gather_rate(tables.features)}
    rates["edge_reads_per_second"] = gather_rate(tables.graph.indices) / 4
    return {"kind": "nodes", **row, **rates}


def explain(rows: list[dict]) -> list[dict]:
    """Compare each row to the first: the same step with reads as slow as the tables' size makes them."""
    for row in rows:
        extra = sum(
            amount * (1 / row[rate] - 1 / rows[0][rate])
            for amount, rate in (
                (row["gathered_bytes"], "gather_bytes_per_second"),
                (row["edge_reads"], "edge_reads_per_second"),
            )
        )
        row["explained_seconds"] = rows[0]["seconds_min"] + max(extra, 0.0)
        row["ratio"] = row["seconds_min"] / rows[0]["seconds_min"]
        row["ratio_beyond_caches"] = row["seconds_min"] / row["explained_seconds"]
    return rows


def measure(
    tables: Tables,
    train: jax.Array,
    shape: tuple[int, Sequence[int], int],
    capacities: dict[str, Capacities | None],
    options: argparse.Namespace,
) -> list[dict]:
    """A row a form of the scanned step."""
    batch_size, fanouts, classes = shape
    seeds, mask = (jnp.resize(x, (STEPS, batch_size)) for x in epoch(KEY(0), train, batch_size))
    calls: dict[str, Callable[[], Any]] = {}
    memory = {}
    for form, found in capacities.items():
        step = make_step(fanouts, classes, hidden=options.hidden, capacities=found)
        state = jax.jit(step.start)(KEY(0), tables)
        arguments = (tables, seeds, mask)
        program = jax.jit(step.epoch, donate_argnums=0).lower(state, *arguments).compile()
        calls[form] = turn(program, state, arguments)
        memory[form] = {"capacities": found, "temp_bytes": temp_bytes(program)}
    times = alternate(calls, options.repetitions)
    rows = int(batch_size * np.prod([1 + fanout for fanout in fanouts]))
    common = {
        "num_nodes": tables.graph.num_nodes,
        "num_edges": tables.graph.num_edges,
        "num_features": tables.features.shape[1],
        "batch_size": batch_size,
        "fanouts": list(fanouts),
        "hidden": options.hidden,
        "gathered_bytes": rows * tables.features[:1].nbytes,
        "edge_reads": rows - batch_size,
    }
    return [
        {
            **common,
            "form": form,
            **summary(times[form], STEPS),
            **memory[form],
            "peak_rss_bytes": peak_rss_bytes(),
        }
        for form in calls
    ]


def turn(program: Callable, state: Any, arguments: tuple) -> Callable[[], Any]:
    """Train on from where the last call left off."""
    states = [state]

    def call():
        states[0], sums = program(states[0], *arguments)
        return sums

    return call


def random_tables(num_nodes: int, degree: int, num_features: int, seed: int = 0) -> Tables:
    """`degree` in-neighbours of each node, uniformly at random; features repeat after 2^16 rows."""
    rng = np.random.default_rng(seed)
    indptr = np.arange(num_nodes + 1, dtype=np.int32) * np.int32(degree)
    indices = rng.integers(0, num_nodes, num_nodes * degree, dtype=np.int32)
    features = np.resize(rng.standard_normal((2**16, num_features), np.float32), (num_nodes, num_features))
    labels = rng.integers(0, CLASSES, num_nodes, dtype=np.int32)
    graph = Graph(jax.device_put(indptr), jax.device_put(indices), {})
    return Tables(graph, jax.device_put(features), jax.device_put(labels))


def options() -> argparse.ArgumentParser:
    made = parser("scaling", __doc__)
    made.add_argument("--kinds", nargs="+", choices=["nodes", *VARIED], default=["nodes", *VARIED])
    sizes = [100_000, 300_000, 1_000_000, 3_000_000, 10_000_000]
    made.add_argument("--nodes", type=int, nargs="+", default=sizes, help="sizes of the random graphs")
    made.add_argument("--degree", type=int, default=20, help="of the random graphs (default: 20)")
    made.add_argument("--num-features", type=int, default=64, help="of the random graphs (default: 64)")
    made.add_argument("--hidden", type=int, default=256, help="width of the hidden layers (default: 256)")
    made.add_argument("--repetitions", type=int, default=5, help="rounds that are timed (default: 5)")
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
