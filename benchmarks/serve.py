"""Latency and throughput of the HTTP service on a graph, at several numbers of clients; answers are checked.

python -m benchmarks.serve --graph graphs/arxiv --json serve.json

The service is a process of its own, the clients are threads of this one, and both share the machine. The
model is not trained: speed does not depend on its parameters. A client sends its next request when it has the
answer to the last.
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import integers, parser, run
from benchmarks.peers.process import ROOT
from jsage import data
from jsage.data import Dataset
from jsage.nn import GraphSAGE
from jsage.sampling import sample_blocks_by_node
from jsage.serving import export, runtime

JSON = {"Content-Type": "application/json"}
POOL = 512
"""Nodes that are asked for."""


class Request(NamedTuple):
    """One request and the rows that it must get."""

    path: str
    body: bytes
    rows: np.ndarray


def main(options: argparse.Namespace) -> list[dict]:
    """One row for each kind of request and number of clients."""
    dataset = data.open(options.graph)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "artefact"), dataset, options)
        asked = requests(Path(folder, "artefact"), dataset, options.nodes)
        with server(Path(folder), options.graph) as (address, _):
            return [
                load(address, name, list_of, clients, options.seconds)
                for name, list_of in asked.items()
                for clients in options.clients
            ]


def write(folder: Path, dataset: Dataset, options: argparse.Namespace) -> None:
    """Export an untrained model for this graph."""
    features = np.asarray(dataset.features)
    model = GraphSAGE(options.hidden, 40, num_layers=len(options.fanouts))
    graph = jax.device_put(dataset.graph)
    blocks = sample_blocks_by_node(jax.random.key(0), graph, jnp.zeros(1, jnp.int32), options.fanouts)
    variables = jax.jit(model.init)(jax.random.key(1), jnp.asarray(features), blocks)
    about = {"task": "classification"}
    plan = export.Plan(options.fanouts, options.sizes, new_sizes=(1,), about=about)
    export.save(folder, model.apply, variables, graph, features, plan)


def requests(folder: Path, dataset: Dataset, nodes: int) -> dict[str, list[Request]]:
    """Known nodes, and new ones beside the graph, with the rows that the artefact gives in this process."""
    embedder = runtime.load(folder).place(export.tables_of(dataset.graph, dataset.features))
    random = np.random.default_rng(0)
    pool = random.integers(0, embedder.num_nodes, POOL)
    rows = embedder.embed(pool)
    known, new = [], []
    for first in range(0, POOL, nodes):
        part = slice(first, first + nodes)
        known.append(Request("/embed", encoded({"nodes": pool[part].tolist()}), rows[part]))
    width = int(embedder.meta["tables"]["features"]["shape"].split(",")[1])
    for _ in range(64):
        ends = random.integers(0, embedder.num_nodes, 16)
        feature = random.normal(size=(1, width)).astype(np.float32)
        row = embedder.embed_new(feature, ends, np.full(16, -1))
        body = {"features": feature.tolist(), "src": ends.tolist(), "dst": [-1] * 16}
        new.append(Request("/embed_new", encoded(body), row))
    return {"embed": known, "embed_new": new}


@contextmanager
def server(folder: Path, graph: Path, log: IO[bytes] | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
    """`host:port` of a service that logs to this file, and its process."""
    command = [sys.executable, "-m", "experiments.serve", "--artefact", str(folder), "--graph", str(graph)]
    process = subprocess.Popen(
        [*command, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        cwd=ROOT,
        env=dict(os.environ),
    )
    try:
        assert process.stdout is not None
        address = next(
            (line.split("http://")[1].strip() for line in process.stdout if "http://" in line), None
        )
        if address is None:
            raise RuntimeError(f"the service ended with status {process.wait()}: see what it printed above")
        yield address, process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def load(address: str, name: str, asked: list[Request], clients: int, seconds: float) -> dict:
    """All clients at once for so many seconds, after a second to get going."""
    call: Callable = lambda number: client(address, asked[number:] + asked[:number], seconds)  # noqa: E731
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(call, range(clients)))
    times = np.concatenate([times for times, _, _ in found])
    if not times.size:
        raise RuntimeError(f"no answer to {name} with {clients} clients within {seconds} s")
    p50, p99 = np.percentile(times, (50, 99))
    return {
        "request": name,
        "nodes": len(asked[0].rows),
        "clients": clients,
        "requests": len(times),
        "requests_per_second": len(times) / seconds,
        "seconds_p50": float(p50),
        "seconds_p99": float(p99),
        "wrong": sum(wrong for _, wrong, _ in found),
        "failed": sum(failed for _, _, failed in found),
    }


def client(address: str, asked: list[Request], seconds: float) -> tuple[list[float], int, int]:
    """Seconds of each request, the wrong answers among them, and the requests that got none."""
    connection = http.client.HTTPConnection(address, timeout=30)
    times, wrong, failed, turn = [], 0, 0, 0
    start = time.perf_counter() + min(1.0, seconds)
    while (began := time.perf_counter()) < start + seconds:
        request, turn = asked[turn % len(asked)], turn + 1
        try:
            connection.request("POST", request.path, request.body, JSON)
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            failed += 1
            connection.close()
            continue
        if began >= start:
            times.append(time.perf_counter() - began)
        wrong += answer.status != 200 or not right(text, request.rows)
    connection.close()
    return times, wrong, failed


def right(text: bytes, rows: np.ndarray) -> bool:
    """Whether an answer holds these rows."""
    found = np.asarray(json.loads(text)["embeddings"])
    return found.shape == rows.shape and np.allclose(found, rows, rtol=1e-5, atol=1e-5)


def encoded(body: Any) -> bytes:
    return json.dumps(body).encode()


def options() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("serve", __doc__)
    made.add_argument("--fanouts", type=integers, default=(10, 10), help="neighbors drawn a hop (10,10)")
    made.add_argument("--hidden", type=int, default=256, help="width of the hidden layers (256)")
    made.add_argument("--sizes", type=integers, default=(1, 16, 128), help="batch sizes (1,16,128)")
    made.add_argument("--nodes", type=int, default=1, help="nodes of a request (1)")
    made.add_argument("--clients", type=integers, default=(1, 8, 32), help="numbers of clients (1,8,32)")
    made.add_argument("--seconds", type=float, default=5.0, help="time of each measurement (5)")
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
