"""A stream of events into a growing graph: what it takes, what compiles on the way, and whether it is exact.

python -m benchmarks.stream --events 1000000 --moments 1000 --json stream.json

Events are appended in order, some hundreds at once, and after each append embeddings are asked for: of random
nodes, half of them as of now and half as of a random time before. At random moments all events so far are
built into a graph again, and the same embeddings of it are compared: edges drawn exactly, rows to the bit.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import integers, peak_rss_bytes, run
from jsage._internal.arrays import pad_rows
from jsage.graph import GrowingGraph, TimeSortedGraph, from_edges, sort_by_time
from jsage.nn import GraphSAGE
from jsage.sampling import TimedNodes, sample_temporal_blocks

WIDTH, HIDDEN, OUT = 64, 64, 32


class Events(NamedTuple):
    """Edges in the order of their times."""

    src: np.ndarray
    dst: np.ndarray
    time: np.ndarray

    def graph(self, count: int, num_nodes: int) -> TimeSortedGraph:
        """The first events as a graph, built at once."""
        src, dst, when = (part[:count] for part in self)
        return sort_by_time(
            from_edges(src, dst, num_nodes, time=when, number=np.arange(count, dtype=np.int32))
        )


def main(options: argparse.Namespace) -> list[dict]:
    """One row of the whole stream."""
    random = np.random.default_rng(0)
    appends = 2 * options.moments
    if not 0 < appends <= options.events:
        raise ValueError(f"{options.moments} moments need {appends} events at least, got {options.events}")
    events = draw_events(options.events, options.nodes, random)
    features = random.standard_normal((options.nodes, WIDTH), np.float32)
    growing = GrowingGraph(events.graph(0, options.nodes), features, (options.nodes, options.events))
    traces, embed = embedder(growing, options)
    counted = Compilations()
    found = follow(growing, events, embed, counted, options)
    jax.monitoring.unregister_event_duration_listener(counted.count)
    graph, _ = growing.tables()
    return [
        {
            "events": options.events,
            "nodes": options.nodes,
            "appends": appends,
            "seeds": options.seeds,
            "fanouts": list(options.fanouts),
            "slots": graph.indices.shape[0],
            "traces": traces.count(type(graph).__name__),
            **found,
            "peak_rss_bytes": peak_rss_bytes(),
        }
    ]


def draw_events(count: int, num_nodes: int, random: np.random.Generator) -> Events:
    """Random edges, a few at each time, into nodes of which some have very many."""
    src = random.integers(0, num_nodes, count)
    dst = (num_nodes * random.random(count) ** 4).astype(np.int64)
    return Events(src, dst, np.sort(random.integers(0, max(count // 3, 1), count, np.int32)))


def embedder(growing: GrowingGraph, options: argparse.Namespace) -> tuple[list[str], Callable]:
    """Embeddings of seeds and the edges that were drawn for them, jitted; the kind of graph of each trace."""
    model, traces, key = GraphSAGE(hidden=HIDDEN, out=OUT), [], jax.random.key(0)
    sample = partial(sample_temporal_blocks, fanouts=options.fanouts)

    def embed(params, graph, features, seeds, key):
        traces.append(type(graph).__name__)
        blocks: Any = sample(key, graph, seeds)
        numbers = [jnp.where(block.mask, block.edge_data["number"], -1) for block in blocks]
        return model.apply(params, features, blocks), numbers

    seeds = TimedNodes(jnp.zeros(options.seeds, jnp.int32), jnp.zeros(options.seeds, jnp.int32))
    graph, features = growing.tables()
    params = jax.jit(lambda *tables: model.init(key, tables[1], sample(key, tables[0], seeds)))(
        graph, features
    )
    jitted = jax.jit(embed)
    return traces, lambda *arguments: jitted(params, *arguments)


class Compilations:
    """How often XLA compiled, whatever program."""

    def __init__(self) -> None:
        self.number = 0
        jax.monitoring.register_event_duration_secs_listener(self.count)

    def count(self, event: str, duration_secs: float, **_: Any) -> None:
        """Take note of an event of jax."""
        self.number += event == "/jax/core/compile/backend_compile_duration"


def follow(
    growing: GrowingGraph,
    events: Events,
    embed: Callable,
    counted: Compilations,
    options: argparse.Namespace,
) -> dict:
    """Append all events and ask for embeddings; compare them at the moments."""
    random, appends = np.random.default_rng(1), 2 * options.moments
    ends = np.sort(random.choice(np.arange(1, options.events), appends - 1, replace=False))
    ends = np.append(ends, options.events)
    moments = set(random.choice(appends, options.moments, replace=False).tolist())
    seconds: dict[str, list[float]] = {"append": [], "embed": [], "rebuild": []}
    compiled, equal, difference, start = [], 0, 0.0, 0
    for number, end in enumerate(ends.tolist()):
        before, key = counted.number, jax.random.key(number)
        seeds = draw_seeds(int(events.time[end - 1]), options, random)
        began = time.perf_counter()
        src, dst, when = (part[start:end] for part in events)
        growing.append_edges(src, dst, {"time": when, "number": np.arange(start, end)})
        tables = jax.block_until_ready(growing.tables())
        appended = time.perf_counter()
        rows, drawn = jax.block_until_ready(embed(*tables, seeds, key))
        seconds["append"].append(appended - began)
        seconds["embed"].append(time.perf_counter() - appended)
        compiled.append(counted.number - before)
        start = end
        if number in moments:
            began = time.perf_counter()
            graph = events.graph(end, options.nodes)
            seconds["rebuild"].append(time.perf_counter() - began)
            others, expected = embed(padded(graph, options.events), tables[1], seeds, key)
            equal += all(map(np.array_equal, drawn, expected))
            difference = max(difference, float(abs(rows - others).max()))
    exact = {"moments": options.moments, "moments_equal": equal, "largest_difference": difference}
    counts = {"compilations": sum(compiled), "compilations_second_half": sum(compiled[appends // 2 :])}
    return exact | counts | in_short(seconds, options.events)


def in_short(seconds: dict[str, list[float]], events: int) -> dict[str, float]:
    """Medians, what one append or embedding in a hundred takes, and how many events fit in a second."""
    found = {f"{name}_seconds_p50": float(np.median(times)) for name, times in seconds.items()}
    late = {f"{name}_seconds_p99": float(np.percentile(seconds[name], 99)) for name in ("append", "embed")}
    return found | late | {"events_per_second": events / sum(seconds["append"])}


def draw_seeds(now: int, options: argparse.Namespace, random: np.random.Generator) -> TimedNodes:
    """Random nodes, half of them of the busy ones, half as of now and half as of a time before."""
    size = options.seeds
    nodes = (options.nodes * random.random(size) ** random.choice([1, 4], size)).astype(np.int32)
    when = np.where(random.random(size) < 0.5, now + 1, random.integers(0, now + 1, size))
    return TimedNodes(jax.device_put(nodes), jax.device_put(when.astype(np.int32)))


def padded(graph: TimeSortedGraph, count: int) -> TimeSortedGraph:
    """The graph in arrays of one size, so that one program serves all of them; no row has what is added."""
    indices = jnp.asarray(pad_rows(np.asarray(graph.indices), count))
    data = {name: jnp.asarray(pad_rows(np.asarray(rows), count)) for name, rows in graph.edge_data.items()}
    return TimeSortedGraph(graph.indptr, indices, data)


def options() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.stream", description=(__doc__ or "").split("\n")[0]
    )
    made.set_defaults(graph=Path("random"))
    made.add_argument("--events", type=int, default=1_000_000, help="of the whole stream (default: 1 M)")
    made.add_argument("--nodes", type=int, default=100_000, help="default: 100 k")
    made.add_argument("--moments", type=int, default=1000, help="at which all is compared (default: 1000)")
    made.add_argument("--seeds", type=int, default=256, help="embedded after each append (default: 256)")
    made.add_argument("--fanouts", type=integers, default=(10, 5), help="default: 10,5")
    made.add_argument("--json", metavar="FILE", help="write the result there; - is standard output")
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
