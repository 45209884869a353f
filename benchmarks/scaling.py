"""How a step's time and memory grow: with the graph at a fixed degree, and with fanouts, batch and depth.

    python -m benchmarks.scaling --graph graphs/arxiv --json scaling.json

Rows of kind `nodes` are on uniform random graphs made here: every neighbor of a batch is somewhere else in
the tables, the worst there is for caches. Larger tables fit caches less, so a step is slower however it is
written: `explained_seconds` is the smallest graph's step plus what its reads of features and edges cost more
at the rates at which this graph's tables are read at random, and `ratio_beyond_caches` compares the step to
it. All these graphs are held at once and take turns, so `peak_rss_bytes` is of all.

All other kinds are on `--graph`, on trees and compacted.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import (
    alternate,
    parser,
    peak_rss_bytes,
    random_reads,
    reset_peak_rss,
    run,
    summary,
    temp_bytes,
)
from benchmarks.step import Tables, make_step, num_classes, place
from jsage import data
from jsage.graph import Graph
from jsage.sampling import Capacities, epoch, fast_key, measure_capacities

BASE = (1024, (25, 10))
VARIED: dict[str, list[tuple[int, tuple[int, ...]]]] = {
    "fanouts": [(1024, fanouts) for fanouts in ((5, 5), (10, 10), (15, 10), (25, 10), (25, 25))],
    "batch_size": [(size, (25, 10)) for size in (256, 512, 1024, 2048, 4096)],
    "depth": [(1024, (5,) * depth) for depth in (1, 2, 3, 4)],
}
CLASSES, STEPS = 40, 16


class Case(NamedTuple):
    """A step that is measured."""

    tables: Tables
    train: jax.Array
    classes: int
    batch_size: int
    fanouts: tuple[int, ...]
    capacities: Capacities | None = None


def main(options: argparse.Namespace) -> list[dict]:
    """First the kinds that vary on `--graph`, then growing graphs."""
    rows = list(vary(options)) if options.kinds != ["nodes"] else []
    return rows + (nodes(options) if "nodes" in options.kinds else [])


def vary(options: argparse.Namespace) -> Iterator[dict]:
    """Rows of fanouts, batch size and depth; both forms take turns."""
    dataset = data.open(options.graph)
    tables, train, classes = place(dataset), jnp.asarray(dataset.train), num_classes(dataset)
    for kind in (kind for kind in options.kinds if kind != "nodes"):
        for batch_size, fanouts in VARIED[kind]:
            reset_peak_rss()
            cases = {"trees": Case(tables, train, classes, batch_size, fanouts)}
            if len(fanouts) > 1:
                found = measure_capacities(fast_key(1), tables.graph, train, batch_size, fanouts)
                cases["compacted"] = cases["trees"]._replace(capacities=found)
            programs = {form: compiled(case, options.hidden) for form, case in cases.items()}
            times = alternate({form: call for form, (call, _) in programs.items()}, options.repetitions)
            for form, (_, figures) in programs.items():
                row = {"kind": kind, "form": form, **figures, **summary(times[form], STEPS)}
                yield row | {"peak_rss_bytes": peak_rss_bytes()}


def nodes(options: argparse.Namespace) -> list[dict]:
    """A row a random graph, with the rates at which its tables are read; all graphs take turns."""
    calls: dict[tuple[str, int], Callable[[], Any]] = {}
    figures: dict[int, dict] = {}
    for size in options.nodes:
        tables = random_tables(size, options.degree, options.num_features)
        seeds = np.random.default_rng(1).choice(size, min(size, STEPS * BASE[0]), replace=False)
        case = Case(tables, jnp.asarray(seeds.astype(np.int32)), CLASSES, *BASE)
        calls["step", size], figures[size] = compiled(case, options.hidden)
        calls["rows", size], rows = random_reads(tables.features)
        calls["edges", size], edges = random_reads(tables.graph.indices)
        figures[size] |= {"rows": rows, "edges": edges}
    times = alternate(calls, options.repetitions)
    return explain([summed(figures[size], times, size) for size in options.nodes])


def summed(figures: dict, times: dict[tuple[str, int], list[float]], size: int) -> dict:
    """The row of one random graph."""
    figures = dict(figures)
    rates = {
        f"{name[:-1]}_reads_per_second": figures.pop(name) / min(times[name, size])
        for name in ("rows", "edges")
    }
    step = summary(times["step", size], STEPS)
    return {"kind": "nodes", "form": "trees", **figures, **step, **rates, "peak_rss_bytes": peak_rss_bytes()}


def explain(rows: list[dict]) -> list[dict]:
    """Compare each row to the first: the same step with reads as slow as the tables' size makes them."""
    for row in rows:
        extra = sum(
            row[f"{name}_reads"]
            * (1 / row[f"{name}_reads_per_second"] - 1 / rows[0][f"{name}_reads_per_second"])
            for name in ("row", "edge")
        )
        row["explained_seconds"] = rows[0]["seconds_min"] + max(extra, 0.0)
        row["ratio"] = row["seconds_min"] / rows[0]["seconds_min"]
        row["ratio_beyond_caches"] = row["seconds_min"] / row["explained_seconds"]
    return rows


def compiled(case: Case, hidden: int) -> tuple[Callable[[], Any], dict]:
    """A call that trains `STEPS` steps on from where the last one left off, and what is known before."""
    tables, train, classes, batch_size, fanouts, capacities = case
    seeds, mask = (jnp.resize(x, (STEPS, batch_size)) for x in epoch(fast_key(0), train, batch_size))
    step = make_step(fanouts, classes, hidden=hidden, capacities=capacities)
    states = [jax.jit(step.start)(fast_key(0), tables)]
    program = jax.jit(step.epoch, donate_argnums=0).lower(states[0], tables, seeds, mask).compile()

    def call():
        states[0], sums = program(states[0], tables, seeds, mask)
        return sums

    read = int(batch_size * np.prod([1 + fanout for fanout in fanouts]))
    return call, {
        "num_nodes": tables.graph.num_nodes,
        "num_edges": tables.graph.num_edges,
        "num_features": tables.features.shape[1],
        "batch_size": batch_size,
        "fanouts": list(fanouts),
        "hidden": hidden,
        "capacities": capacities,
        "row_reads": read,
        "edge_reads": read - batch_size,
        "temp_bytes": temp_bytes(program),
    }


def random_tables(num_nodes: int, degree: int, num_features: int, seed: int = 0) -> Tables:
    """`degree` in-neighbors of each node, uniformly at random; features repeat after 2^16 rows."""
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
