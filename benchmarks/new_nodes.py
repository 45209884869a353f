"""Seconds that a new node takes, on a small and on a large graph; and what compiles over many requests.

python -m benchmarks.new_nodes --json new_nodes.json

Both graphs are random, with the same number of edges into each node, so that a request reads as much of
either. Requests on the two take turns. A compilation is what XLA reports as one, of whatever program.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import integers, peak_rss_bytes, run
from jsage.graph import Graph
from jsage.graph.overlay import NewNodes
from jsage.infer import embed_new
from jsage.nn import GraphSAGE
from jsage.sampling import sample_blocks

DEGREE, WIDTH, FANOUTS = 10, 128, (10, 10)
CAPACITY = (64, 1024)
"""New nodes and edges of the requests of varied sizes."""
MODES = {"whole": None, "sampled": FANOUTS}


def main(options: argparse.Namespace) -> list[dict]:
    """A row for each mode and graph, then one for each mode's requests of varied sizes."""
    random = np.random.default_rng(0)
    tables = {edges: place(edges, random) for edges in options.edges}
    graph, features = tables[options.edges[0]]
    model = GraphSAGE(hidden=256, out=64)
    blocks = sample_blocks(jax.random.key(0), graph, jnp.zeros(1, jnp.int32), FANOUTS)
    params = model.init(jax.random.key(1), features, blocks)
    calls = {edges: partial(embed_new, model, params, *table) for edges, table in tables.items()}
    rows = []
    for mode, fanouts in MODES.items():
        embed = {edges: partial(call, fanouts=fanouts) for edges, call in calls.items()}
        nodes = {edges: table[0].num_nodes for edges, table in tables.items()}
        rows += latencies(mode, embed, nodes, options.requests, random)
    for mode, fanouts in MODES.items():
        embed = partial(calls[options.edges[0]], fanouts=fanouts)
        rows.append(varied(mode, embed, graph.num_nodes, options.varied, random))
    return rows


def place(num_edges: int, random: np.random.Generator) -> tuple[Graph, jax.Array]:
    """A graph whose nodes have `DEGREE` edges in, and features."""
    nodes = max(num_edges // DEGREE, 1)
    indices = random.integers(0, nodes, nodes * DEGREE, np.int32)
    graph = Graph(jnp.arange(0, nodes * DEGREE + 1, DEGREE, dtype=jnp.int32), jnp.asarray(indices))
    return graph, jnp.asarray(random.standard_normal((nodes, WIDTH), np.float32))


def request(
    known: int, nodes: int, edges: int, random: np.random.Generator, capacity: tuple[int, int]
) -> NewNodes:
    """New nodes and edges in both directions between them and known ones."""
    new = -1 - random.integers(0, nodes, edges // 2)
    old = random.integers(0, known, edges // 2)
    features = random.standard_normal((nodes, WIDTH), np.float32)
    return NewNodes(features, np.concatenate([old, new]), np.concatenate([new, old]), {}, capacity)


def latencies(
    mode: str,
    embed: dict[int, Callable[[NewNodes], Any]],
    nodes: dict[int, int],
    requests: int,
    random: np.random.Generator,
) -> list[dict]:
    """Requests of one node with `DEGREE` edges in and as many out, on the graphs in turn."""
    times: dict[int, list[float]] = {edges: [] for edges in embed}
    for number in range(requests + 5):
        for edges, call in embed.items():
            new = request(nodes[edges], 1, 2 * DEGREE, random, (1, 2 * DEGREE))
            began = time.perf_counter()
            call(new)
            if number >= 5:
                times[edges].append(time.perf_counter() - began)
    rows = []
    for edges, seconds in times.items():
        p50, p99 = np.percentile(seconds, (50, 99))
        found = {"seconds_p50": float(p50), "seconds_p99": float(p99), "requests": requests}
        rows.append({"mode": mode, "nodes_a_request": 1, "graph_edges": edges, **found})
    return rows


def varied(mode: str, embed: Callable, known: int, requests: int, random: np.random.Generator) -> dict:
    """Requests of random sizes within one capacity: how many programs are compiled after the first."""
    embed(request(known, *CAPACITY, random, CAPACITY))
    compiled: list[float] = []

    def count(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(count)
    began = time.perf_counter()
    for _ in range(requests):
        nodes, edges = (int(random.integers(1, most + 1)) for most in CAPACITY)
        embed(request(known, nodes, edges, random, CAPACITY))
    seconds = time.perf_counter() - began
    jax.monitoring.unregister_event_duration_listener(count)
    return {
        "mode": mode,
        "requests": requests,
        "capacity": list(CAPACITY),
        "compilations": len(compiled),
        "seconds_a_request": seconds / max(requests, 1),
        "peak_rss_bytes": peak_rss_bytes(),
    }


def options() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.new_nodes", description=(__doc__ or "").split("\n")[0]
    )
    made.set_defaults(graph=Path("random"))
    made.add_argument(
        "--edges", type=integers, default=(100_000, 10_000_000), help="graph sizes (default: 100 k, 10 M)"
    )
    made.add_argument("--requests", type=int, default=2000, help="timed on each graph (default: 2000)")
    made.add_argument("--varied", type=int, default=10_000, help="of random size (default: 10 000)")
    made.add_argument("--json", metavar="FILE", help="write the result there; - is standard output")
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
