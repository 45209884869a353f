"""The command: its options; train and export where asked; compile and serve."""

import argparse
import asyncio
import resource
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from experiments.serve.connection import Connection
from experiments.serve.inputs import SYMMETRIC, prepare
from experiments.serve.log import LOGGING
from experiments.serve.names import Names
from experiments.serve.server import Server
from experiments.serve.service import Limits, make_app
from jsage import data
from jsage.serving import export, runtime

BACKLOG = 64
"""Connections that wait to be let in, and so many at once are."""
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
DESCRIPTION = (
    "Serve a trained GraphSAGE over HTTP: embeddings and predictions of known nodes and of new ones."
)


def main(options: argparse.Namespace) -> None:
    """Train and export unless an artefact is given; compile; serve until told to stop."""
    if options.artefact:
        serve(options, options.artefact)
    elif options.export:
        train(options, options.export)
        serve(options, options.export)
    else:
        with tempfile.TemporaryDirectory() as folder:
            train(options, Path(folder, "served"))
            serve(options, Path(folder, "served"))


def train(options: argparse.Namespace, folder: Path) -> None:
    """`folder/artefact` by the recipe of experiments.classify, and `folder/graph`, which is raw."""
    from experiments.common import datasets, learners, runs
    from experiments.common.config import Config

    if folder.exists():
        raise FileExistsError(f"{folder} exists already: pass --artefact {folder} to serve it")
    config = Config(
        options.dataset, fanouts=options.fanouts, layers=len(options.fanouts), epochs=options.epochs
    )
    raw = datasets.read(config)
    if raw.features is None:
        raise ValueError(f"{options.dataset} has no features, and new nodes are embedded from theirs")
    dataset, training_graph, scaling = datasets.prepare(raw, config)
    dataset, training_graph = learners.weigh(dataset, training_graph, config)
    task = runs.task_of(dataset, config)
    learner = learners.sage(config, task.width, dataset.graph.num_nodes, identity=False)
    found = runs.train_all("GraphSAGE", learner, task, dataset, training_graph, config)
    say(f"{task.metric} {found.scores[0][task.metric]:.4f} on {len(dataset.test)} test nodes")
    model = learners.sage_model(config, task.width)
    run = found.runs[0]
    plan = export.Plan(
        config.fanouts,
        options.sizes,
        platforms=options.platforms,
        about={
            "task": task.name,
            "dataset": options.dataset,
            "threshold": found.thresholds[0],
            "weights": SYMMETRIC,
            **datasets.kept(scaling),
        },
    )
    variables = {"params": run.params, **run.stats}
    export.save(folder / "artefact", model.apply, variables, dataset.graph, dataset.features, plan)
    data.save(folder / "graph", raw, datasets.read_names(config))


def serve(options: argparse.Namespace, folder: Path) -> None:
    """Compile every program, then answer on the port."""
    began = time.perf_counter()
    loaded = runtime.load(folder / "artefact")
    path = options.graph or folder / "graph"
    dataset, inputs = prepare(loaded.meta["about"], data.open(path))
    names = Names(data.read_names(path))
    embedder = loaded.place(export.tables_of(dataset.graph, dataset.features))
    limits = Limits(
        body=options.max_body,
        nodes=options.max_nodes,
        seconds=options.timeout,
        waiting=options.max_waiting,
        wait=options.wait / 1000,
        memory=options.max_memory,
        connections=options.max_connections,
        idle=options.idle,
    )
    # a web page may have its own name resolved to this machine
    own = LOOPBACK if options.host in LOOPBACK else ("*",)
    app = make_app(embedder, limits, options.names or own, inputs, names)
    config, sock = listen(app, limits, options.host, options.port)
    say(f"{loaded.compilations} programs compiled in {time.perf_counter() - began:.1f} s")
    say(f"serving {embedder.num_nodes} nodes on http://{options.host}:{sock.getsockname()[1]}")
    # uvicorn answers what has arrived, then raises the signal again for the handlers that it found
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    server = Server(config, options.drain)
    app.state.stopping = lambda: server.stopping
    asyncio.run(server.serve([sock]))


def listen(app: Starlette, limits: Limits, host: str, port: int) -> tuple[uvicorn.Config, socket.socket]:
    """uvicorn's settings for these limits, and the socket, on which connections may wait already."""
    may_open(limits.connections + 4 * BACKLOG + 64)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Connection,
        ws="none",
        log_config=LOGGING,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        backlog=BACKLOG,
        limit_concurrency=limits.connections + 1,
        timeout_keep_alive=int(limits.idle) + 1,
        h11_max_incomplete_event_size=limits.headers,
        timeout_graceful_shutdown=int(2 * limits.seconds) + 1,
    )
    sock = config.bind_socket()
    # asyncio leaves the delay of small packets (40 ms an answer) on for a socket that it did not make itself
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # the most that one turn of the loop reads from a connection, and that waits for each
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    sock.listen(config.backlog)  # so that who reads the address below is not refused
    return config, sock


def may_open(files: int) -> None:
    """Let this process open so many files; ValueError if it may not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise ValueError(
            f"--max-connections needs {files} files, the limit is {hard}: raise ulimit -n or pass fewer"
        )
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def say(line: str) -> None:
    print(line, flush=True)


def numbers(text: str) -> tuple[int, ...]:
    """`25,10` as a tuple."""
    return tuple(int(part) for part in text.split(","))


def names(text: str) -> tuple[str, ...]:
    """`cpu,cuda` as a tuple."""
    return tuple(text.split(","))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.serve", description=DESCRIPTION)
    limits = Limits()
    given = parser.add_argument
    given("--artefact", type=Path, help="serve what --export wrote, without training")
    given("--graph", type=Path, help="a newer graph directory for it")
    given("--export", type=Path, help="a new folder to keep the artefact and the graph in")
    given("--dataset", default="digits", help="what to train on, as experiments.classify takes it")
    given("--epochs", type=int, default=60, help="passes over the training nodes, at most (60)")
    given("--fanouts", type=numbers, default=(10, 10), help="neighbors drawn a hop (10,10)")
    given("--sizes", type=numbers, default=(1, 16, 128), help="batch sizes (1,16,128)")
    given("--platforms", type=names, default=("cpu",), help="platforms of the artefact (cpu)")
    given("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    given("--names", type=names, help="names of the service, as in Host (on 127.0.0.1 its own, else any)")
    given("--port", type=int, default=8000, help="port to listen on; 0 takes any that is free (8000)")
    given("--timeout", type=float, default=limits.seconds, help="seconds that a request may take (10)")
    given("--drain", type=float, default=2.0, help="seconds that open connections have after SIGTERM (2)")
    given("--wait", type=float, default=1000 * limits.wait, help="milliseconds a batch waits for more (2)")
    given("--max-body", type=int, default=limits.body, help="bytes of a body (1048576)")
    given("--max-nodes", type=int, default=limits.nodes, help="nodes of a request (4096)")
    given("--max-memory", type=int, default=limits.memory, help="bytes of bodies and answers (67108864)")
    given("--max-connections", type=int, default=limits.connections, help="connections at once (512)")
    given("--idle", type=float, default=limits.idle, help="seconds without a request's headers (10)")
    given("--max-waiting", type=int, default=limits.waiting, help="rows that may wait (65536)")
    return parser.parse_args(arguments)


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    try:
        main(parse(arguments))
    except (OSError, RuntimeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0
