"""Seconds that it takes to sample as of a time: each draw and each view, beside the sampler without times.

python -m benchmarks.temporal --graph graphs/arxiv --json temporal.json

Edges get times at random, and so do seeds: half of the edges are visible, on average.
"""

import argparse
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from benchmarks.common import alternate, parser, run, summary
from jsage import data
from jsage.graph import Graph, sort_by_time, up_to, within
from jsage.sampling import (
    ByNode,
    Causal,
    Recent,
    TimedNodes,
    fast_key,
    latest,
    sample_blocks,
    sample_temporal_blocks,
    without_replacement,
)

FANOUTS, SPAN = (25, 10), 10**6
WAYS: dict[str, dict[str, Any]] = {
    "without_replacement, before": {"draw": without_replacement},
    "without_replacement, up_to": {"draw": without_replacement, "visible": up_to},
    "without_replacement, within": {"draw": without_replacement, "visible": within(SPAN // 5)},
    "without_replacement, causal": {"draw": without_replacement, "visible": Causal()},
    "latest, before": {"draw": latest},
    "recent, before": {"draw": Recent(0.9)},
    "by node, before": {"draw": ByNode()},
}
STATIC = "without_replacement, no times"


def main(options: argparse.Namespace) -> list[dict]:
    """One row for each way; all take turns."""
    graph = data.open(options.graph).graph
    time = np.random.default_rng(0).integers(0, SPAN, graph.num_edges).astype(np.int32)
    graph = jax.device_put(sort_by_time(graph._replace(edge_data={"time": time})))
    return measure(graph, options.batch_size, options.repetitions)


def measure(graph: Graph, batch_size: int, repetitions: int) -> list[dict]:
    """Every way on other seeds at each call, with the memory of its program beside its arguments."""
    calls: dict[str, Callable[[], Any]] = {}
    memory: dict[str, int] = {}
    key, seeds = fast_key(0), at_random(graph, batch_size)
    for name, options in {STATIC: None, **WAYS}.items():

        def sample(key: Array, number: Array, graph: Graph, seeds: TimedNodes, options: Any = options):
            key = jax.random.fold_in(key, number)
            if options is None:
                blocks = sample_blocks(key, graph, seeds.nodes, FANOUTS)
            else:
                blocks = sample_temporal_blocks(key, graph, seeds, FANOUTS, **options)
            names = ("src", "dst", "mask", "edge_data")
            return [{n: getattr(block, n) for n in names if hasattr(block, n)} for block in blocks]

        compiled = jax.jit(sample).lower(key, np.int32(0), graph, seeds).compile()
        analysis: Any = compiled.memory_analysis()
        memory[name] = int(analysis.temp_size_in_bytes)
        calls[name] = turn(compiled, key, graph, seeds)
    times = alternate(calls, repetitions)
    least = min(times[STATIC])
    return [
        {"way": name, "fanouts": list(FANOUTS), "batch_size": batch_size, **summary(times[name], 1)}
        | {"temp_bytes": memory[name], "ratio_to_no_times": min(times[name]) / least}
        for name in calls
    ]


def at_random(graph: Graph, batch_size: int) -> TimedNodes:
    """Nodes, each at a time."""
    rng = np.random.default_rng(1)
    nodes, time = rng.integers(0, graph.num_nodes, batch_size), rng.integers(0, SPAN, batch_size)
    return jax.device_put(TimedNodes(nodes.astype(np.int32), time.astype(np.int32)))


def turn(call: Callable, key: Array, graph: Graph, seeds: TimedNodes) -> Callable[[], Any]:
    """Other draws at each call."""
    number = count()
    return lambda: call(key, np.int32(next(number)), graph, seeds)


def options() -> argparse.ArgumentParser:
    made = parser("temporal", __doc__)
    made.add_argument("--batch-size", type=int, default=1024)
    made.add_argument("--repetitions", type=int, default=20)
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
