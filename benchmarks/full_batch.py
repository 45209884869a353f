"""One mean and one max aggregation over the whole graph, forward and backward, in several layouts.

    python -m benchmarks.full_batch --graph graphs/arxiv --peer-python PYTHON --json full_batch.json

Degree classes, segment operations, SciPy's CSR product (on one thread, as SciPy has it; the backward is the
product with the transpose) and, run by PYTHON with torch and torch_geometric, the forms of
`benchmarks/peers/pyg_full.py`. All take turns, round after round, on the features in float32, which are the
cotangent too. A ratio compares a layout with the degree classes of the same round.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from benchmarks.common import memory_bytes, parser, peak_rss_bytes, reset_peak_rss, run, summary
from benchmarks.peers.process import Worker
from jsage import aggregate, data
from jsage.blocks import sliced_full_block
from jsage.blocks.layout import Block
from jsage.graph import Graph
from jsage.sampling import full_block

OPS = {"mean": aggregate.mean, "max": aggregate.max}
PASSES = ("forward", "forward_backward")
LOCAL = ("classes", "segments", "scipy")

Form = tuple[str, str, str]
"""An operation, a layout and a pass."""
Call = Callable[[], dict]
"""Runs a form once: `{"seconds", "peak_rss_bytes", "checksum"}`, or `{"error"}` with the reason."""


def main(options: argparse.Namespace) -> list[dict]:
    """Rows of every form; one that cannot be run here has a row that says why."""
    dataset = data.open(options.graph)
    if dataset.features is None:
        raise ValueError("full_batch needs features: make the graph with benchmarks.make_graph")
    calls: dict[Form, Call] = {}
    extra: dict[str, dict] = {}
    for layout in options.layouts:
        start = time.perf_counter()
        calls |= LAYOUTS[layout](dataset.graph, np.asarray(dataset.features, np.float32))
        extra[layout] = {"build_seconds": time.perf_counter() - start}
    with ExitStack() as stack:
        if options.peer_python:
            worker = stack.enter_context(peer(options))
            said = worker.request({})
            for form in said["forms"]:
                extra[f"pyg {form}"] = {"versions": said["versions"]}
                for op, way in product(OPS, PASSES):
                    request = {"op": op, "form": form, "pass": way}
                    calls[op, f"pyg {form}", way] = partial(worker.request, request)
        answers, lacking = measure(calls, options.rounds)
    size = {"num_edges": dataset.graph.num_edges, "width": dataset.features.shape[1]}
    return [
        {"op": op, "layout": layout, "pass": way, **size, **extra[layout], **figures}
        for (op, layout, way), figures in compare(answers, lacking).items()
    ]


def peer(options: argparse.Namespace) -> Worker:
    folder, environment = [str(options.graph.resolve())], os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return Worker(options.peer_python, "benchmarks.peers.pyg_full", folder, environment)


def measure(calls: dict[Form, Call], rounds: int) -> tuple[dict[Form, list[dict]], dict[Form, str]]:
    """The answers of each form in turn, and why some have none; the first round compiles and is left out."""
    answers: dict[Form, list[dict]] = {form: [] for form in calls}
    lacking: dict[Form, str] = {}
    for round_ in range(1 + rounds):
        for form, call in calls.items():
            if form in lacking:
                continue
            answer = call()
            if "error" in answer:
                lacking[form] = answer["error"]
            elif round_:
                answers[form].append(answer)
    return answers, lacking


def compare(answers: dict[Form, list[dict]], lacking: dict[Form, str]) -> dict[Form, dict[str, Any]]:
    """The figures of each form, with its ratios to the degree classes where they were run."""
    figures: dict[Form, dict[str, Any]] = {}
    for form, found in answers.items():
        if form in lacking:
            figures[form] = {"not_run": lacking[form]}
            continue
        times = [answer["seconds"] for answer in found]
        peak = max(answer["peak_rss_bytes"] for answer in found)
        figures[form] = summary(times) | {"rounds": len(times), "peak_rss_bytes": peak}
        figures[form]["checksum"] = found[-1]["checksum"]
        base = [answer["seconds"] for answer in answers.get((form[0], "classes", form[2]), [])]
        if base and (form[0], "classes", form[2]) not in lacking:
            ratios = [time / ours for time, ours in zip(times, base, strict=True)]
            figures[form] |= {"ratios_to_classes": ratios, "ratio_to_classes": median(ratios)}
    return figures


def classes(graph: Graph, features: np.ndarray) -> dict[Form, Call]:
    return in_jax("classes", sliced_full_block(graph), features)


def segments(graph: Graph, features: np.ndarray) -> dict[Form, Call]:
    """Segment operations hold a row for every edge: not where two of those would not fit the memory."""
    held = 2 * graph.num_edges * features[:1].nbytes
    memory = memory_bytes()
    if held < memory / 2:
        return in_jax("segments", full_block(graph), features)
    why = f"messages and their gradient take {held / 1e9:.0f} GB of {memory / 1e9:.0f}"
    return {(op, "segments", way): lambda: {"error": why} for op in OPS for way in PASSES}


def scipy(graph: Graph, features: np.ndarray) -> dict[Form, Call]:
    """The mean alone: SciPy has no product with a maximum."""
    from scipy.sparse import csr_matrix

    indptr, indices = np.asarray(graph.indptr), np.asarray(graph.indices)
    degree = np.diff(indptr)
    share = np.repeat(1 / np.maximum(degree, 1).astype(np.float32), degree)
    matrix = csr_matrix((share, indices, indptr), (graph.num_nodes, graph.num_nodes))
    turned = matrix.T
    ways = {
        "forward": lambda: [matrix @ features],
        "forward_backward": lambda: [matrix @ features, turned @ features],
    }
    return {("mean", "scipy", way): partial(observed, call) for way, call in ways.items()}


LAYOUTS = {"classes": classes, "segments": segments, "scipy": scipy}


def in_jax(layout: str, block: Block, features: np.ndarray) -> dict[Form, Call]:
    return {(op, layout, way): call for op, way, call in _in_jax(block, jnp.asarray(features))}


def _in_jax(block: Block, h: Array) -> Iterator[tuple[str, str, Call]]:
    for op, reduce in OPS.items():

        def forward(h, block, reduce=reduce):
            return [reduce(h, block)]

        def both(h, block, reduce=reduce):
            out, pull = jax.vjp(lambda h: reduce(h, block), h)
            return [out, *pull(h)]

        for way, function in zip(PASSES, (forward, both), strict=True):
            yield op, way, partial(observed, partial(jax.jit(function), h, block))


def observed(call: Callable[[], list]) -> dict:
    """Time and peak memory of a call; the checksum is the mean size of its last result's entries."""
    reset_peak_rss()
    start = time.perf_counter()
    found = jax.block_until_ready(call())
    seconds = time.perf_counter() - start
    peak = peak_rss_bytes()
    rows = np.asarray(found[-1]).ravel()
    parts = range(0, rows.size, 2**22)
    checksum = sum(float(np.abs(rows[at : at + 2**22]).sum(dtype=np.float64)) for at in parts)
    return {"seconds": seconds, "peak_rss_bytes": peak, "checksum": checksum / max(rows.size, 1)}


def options() -> argparse.ArgumentParser:
    made = parser("full_batch", __doc__)
    made.add_argument("--peer-python", help="an interpreter that has torch and torch_geometric")
    made.add_argument("--layouts", nargs="+", choices=LOCAL, default=list(LOCAL), help="ours and SciPy's")
    made.add_argument("--rounds", type=int, default=5, help="rounds that are timed (default: 5)")
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
