"""The HTTP service on an embedder: requests checked, batched, measured, and answered in JSON."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import jax.monitoring
import numpy as np
import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from experiments.serve.answers import CLOSING, TASKS, Problem, answer, lists, parse, short
from experiments.serve.batcher import Batcher, QueueFullError
from experiments.serve.inputs import Inputs
from experiments.serve.middleware import Checked, Measured
from experiments.serve.names import Names
from experiments.serve.openapi import describe
from jsage.serving.runtime import Embedder
from jsage.serving.runtime.checks import check_new, check_nodes

COMPILED = "/jax/core/compile/backend_compile_duration"
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Limits(NamedTuple):
    """What is refused."""

    body: int = 1 << 20
    """Bytes of a request's body: more is 413."""
    nodes: int = 4096
    """Nodes of a request: more is 413."""
    seconds: float = 10.0
    """Time for the body to arrive (408), and then for the answer (504)."""
    waiting: int = 65536
    """Rows, and requests with new nodes, that may queue: more is 503."""
    wait: float = 0.002
    """Seconds that a batch which is not full waits for more."""
    memory: int = 64 << 20
    """Bytes of bodies and answers at once: more is 503."""
    connections: int = 512
    """More close those that have been idle for longest."""
    idle: float = 10.0
    """Seconds without a request, or for its headers to arrive (408)."""
    headers: int = 16384
    """Bytes of a request's headers: more is 431."""
    depth: int = 8
    """Lists and objects in one another: more is 400."""


NOTHING, NAMELESS = Inputs(), Names()
NUMBER = 24
"""Bytes of a number in an answer, at most."""


class Service:
    """The endpoints, on one embedder."""

    def __init__(self, embedder: Embedder, limits: Limits, inputs: Inputs, names: Names) -> None:
        self.embedder, self.limits, self.inputs, self.names = embedder, limits, inputs, names
        self.asked = inputs.asked(embedder.meta)
        self.sizes = embedder.sizes("embed")
        self.task = embedder.meta["about"].get("task")
        self.threshold = float(embedder.meta["about"].get("threshold", 0))
        self.width = embedder.meta["output"]["width"]
        self._pool = ThreadPoolExecutor(1, "device")
        self._new = 0
        self.held = 0
        """Bytes of the bodies and answers of requests that are not answered yet."""
        self.page = describe(embedder.meta, embedder.num_nodes, limits, self.asked, named=bool(names))
        self.batcher = Batcher(
            self._embed, self.sizes[-1], self._pool, wait=limits.wait, limit=limits.waiting
        )
        prometheus_client.disable_created_metrics()
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = counter("jsage_requests_total", "Requests by path and status.", ["path", "status"])
        self.seconds = histogram("jsage_request_seconds", "Time to answer.", ["path"], buckets=SECONDS)
        self.rows = histogram("jsage_batch_rows", "Rows of a batch, padding left out.", buckets=self.sizes)
        self.device = histogram("jsage_batch_seconds", "Time of a batch on the device.", buckets=SECONDS)
        self.compilations = counter("jsage_compilations_total", "XLA compilations since the start.")
        waiting = gauge("jsage_queue_rows", "Rows that wait for a batch.")
        waiting.set_function(lambda: self.batcher.waiting)
        gauge("jsage_held_bytes", "Bytes of bodies and answers.").set_function(lambda: self.held)
        gauge("jsage_nodes", "Nodes of the graph.").set(embedder.num_nodes)

    async def embed(self, request: Request) -> Response:
        """`{"nodes": [3, 1]}` to `{"embeddings": [[...], [...]]}`, with `names` where nodes have them."""
        nodes = self._nodes(await self._body(request))
        rows = await self._known(request, nodes)
        return JSONResponse({"embeddings": rows.tolist(), **self.names.of(nodes)})

    async def predict(self, request: Request) -> Response:
        """What `/embed` or `/embed_new` takes, to classes, or labels, and probabilities."""
        if self.task not in TASKS:
            raise Problem(404, f"this model predicts no classes or labels, its task is {self.task!r}")
        body = await self._body(request)
        new = "features" in body
        asked: Any = self._arrays(body) if new else self._nodes(body)
        del body  # large beside what is in it
        rows = await (self._new_rows(request, asked) if new else self._known(request, asked))
        named = {} if new else self.names.of(asked)
        return JSONResponse(TASKS[self.task](rows.astype(np.float64), self.threshold) | named)

    async def embed_new(self, request: Request) -> Response:
        """`{"features": [[...]], "src": [7, -1], "dst": [-1, 7]}`: new node `i` is -1 - i among the ends."""
        rows = await self._new_rows(request, self._arrays(await self._body(request)))
        return JSONResponse({"embeddings": rows.tolist()})

    async def health(self, request: Request) -> Response:
        """What is served."""
        meta = self.embedder.meta
        served = {"nodes": self.embedder.num_nodes, "width": meta["output"]["width"]}
        served |= {"features": meta["features"]["width"], "task": self.task}
        served["names"] = bool(self.names)
        return JSONResponse({"status": "ok", **served, "fanouts": meta["fanouts"], "sizes": self.sizes})

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text."""
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """What all this takes and gives."""
        return JSONResponse(self.page)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Batches run while the server does."""

        def count(event: str, duration_secs: float, **_: Any) -> None:
            if event == COMPILED:
                self.compilations.inc()

        jax.monitoring.register_event_duration_secs_listener(count)
        task = asyncio.create_task(self.batcher.work())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        self._pool.shutdown()

    async def _body(self, request: Request) -> dict:
        """The JSON object of a request, read no further than the limit."""
        kind = request.headers.get("content-type", "nothing")
        if kind.partition(";")[0].strip().lower() != "application/json":  # any web page may send other types
            raise Problem(415, f"the Content-Type must be application/json (curl --json), got {short(kind)}")
        data, size = bytearray(), 0
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size <= self.limits.body:
                        self._hold(request, len(chunk))
                        data += chunk
                    elif size > 256 * self.limits.body:
                        break  # the rest is not read
        except TimeoutError:
            raise Problem(408, f"the body must arrive within {self.limits.seconds:g} s") from None
        if size > self.limits.body:
            raise Problem(413, f"a body has at most {self.limits.body} bytes, got {size} or more")
        return parse(data, self.limits.depth)

    def _hold(self, request: Request, size: int) -> None:
        """Count bytes that are held until the request is answered."""
        if self.held + size > self.limits.memory:
            raise Problem(503, f"requests hold {self.held} bytes, at most {self.limits.memory}: try later")
        self.held += size
        request.scope["held"] = request.scope.get("held", 0) + size

    def _nodes(self, body: dict) -> np.ndarray:
        """The ids of a body: checked, and small beside it."""
        nodes = self.names.ids(lists(body, ("nodes",))["nodes"], "nodes")
        if len(nodes) > self.limits.nodes:
            raise Problem(413, f"a request has at most {self.limits.nodes} nodes, got {len(nodes)}")
        try:
            return check_nodes(np.asarray(nodes), self.embedder.num_nodes)
        except ValueError as error:
            raise Problem(400, str(error)) from None

    async def _known(self, request: Request, nodes: np.ndarray) -> np.ndarray:
        self._hold(request, len(nodes) * (self.width * NUMBER + self.names.size))
        return await self._in_time(self.batcher.submit(nodes))

    def _arrays(self, body: dict) -> dict[str, np.ndarray]:
        """The new nodes of a body: checked, and small beside it."""
        new = lists(body, ("features", "src", "dst", *self.asked))
        ends = {name: self._ends(new, name) for name in ("src", "dst")}
        self._small(len(new["features"]), len(new["src"]))
        meta, made = self.embedder.meta, [1.0] * len(new["src"])
        names = [name.removeprefix("edge_") for name in meta["tables"] if name.startswith("edge_")]
        data = {name: new.get(f"edge_{name}", made) for name in names}
        try:
            checked = check_new(meta, self.embedder.num_nodes, new | ends, data) | ends
        except ValueError as error:
            raise Problem(400, str(error)) from None
        try:
            return self.inputs(checked, new)
        except ValueError as error:
            raise Problem(422, str(error)) from None

    async def _new_rows(self, request: Request, new: dict[str, np.ndarray]) -> np.ndarray:
        if self._new >= self.limits.waiting:
            raise Problem(503, f"{self._new} requests wait, at most {self.limits.waiting} may: try later")
        self._hold(request, len(new["features"]) * self.width * NUMBER)
        weights = {name.removeprefix("edge_"): rows for name, rows in new.items() if name.startswith("edge_")}
        call = partial(self.embedder.embed_new, new["features"], new["src"], new["dst"], weights)
        self._new += 1
        try:
            loop = asyncio.get_running_loop()
            rows = await self._in_time(loop.run_in_executor(self._pool, call))
        finally:
            self._new -= 1
        if not np.isfinite(rows).all():
            raise Problem(422, "the model overflows on these features: give them as those of the graph are")
        return rows

    def _ends(self, new: dict, name: str) -> np.ndarray:
        """Known nodes' ids, of names too, and -1 - i for new node `i`."""
        ends, most = self.names.ids(new[name], name), len(new["features"])
        if wrong := [end for end in ends if not -most <= end < self.embedder.num_nodes]:
            known = f"known nodes 0 .. {self.embedder.num_nodes - 1} or new ones -1 .. {-most}"
            raise Problem(400, f"{name} must be {known}, got {short(wrong[0])}")
        return np.asarray(ends, np.int64).reshape(-1)

    async def _in_time(self, rows: Any) -> np.ndarray:
        try:
            return await asyncio.wait_for(rows, self.limits.seconds)
        except TimeoutError:
            raise Problem(504, f"no answer within {self.limits.seconds:g} s: try later") from None
        except QueueFullError as error:
            raise Problem(503, f"{error}: try later") from None

    def _embed(self, nodes: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        rows = self.embedder.embed(nodes)
        self.device.observe(time.perf_counter() - began)
        self.rows.observe(len(nodes))
        return rows

    def _small(self, nodes: int, edges: int) -> None:
        """413 for more new nodes or edges than the largest program takes."""
        size = max(self.embedder.sizes("embed_new"), default=0)
        most = size * self.embedder.meta["new_edges"]
        if nodes > size or edges > most:
            raise Problem(
                413, f"a request has at most {size} new nodes and {most} edges, got {nodes} and {edges}"
            )


def make_app(
    embedder: Embedder,
    limits: Limits,
    hosts: Sequence[str] = ("*",),
    inputs: Inputs = NOTHING,
    names: Names = NAMELESS,
) -> Starlette:
    """The service as an ASGI application that goes by these names."""
    service = Service(embedder, limits, inputs, names)
    posts = {"/embed": service.embed, "/embed_new": service.embed_new, "/predict": service.predict}
    gets = {"/healthz": service.health, "/metrics": service.metrics, "/openapi.json": service.openapi}
    routes = [Route(path, call, methods=["POST"]) for path, call in posts.items()]
    routes += [Route(path, call, methods=["GET"]) for path, call in gets.items()]

    async def problem(request: Request, error: Any) -> Response:
        return answer(error.status, error.reason, close=error.status in CLOSING)

    async def http(request: Request, error: Any) -> Response:
        return answer(
            error.status_code, f"{request.method} {short(request.url.path)}: {error.detail}", error.headers
        )

    async def failed(request: Request, error: Exception) -> Response:
        return answer(500, "the service failed: its log says why")

    app = Starlette(
        routes=routes,
        lifespan=service.lifespan,
        exception_handlers={Problem: problem, HTTPException: http, Exception: failed},
        middleware=[
            Middleware(Measured, service=service),
            Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts]),
            Middleware(Checked, limit=limits.headers),
        ],
    )
    app.router.redirect_slashes = False
    app.state.stopping = lambda: False
    app.state.limits = limits
    app.state.refused = lambda status: service.requests.labels("other", str(status)).inc()
    return app
