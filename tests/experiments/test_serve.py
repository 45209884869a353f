"""The HTTP service as a user meets it: a process, real requests, bad ones, a signal to stop."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from benchmarks import serve as benchmark  # noqa: E402
from benchmarks import soak  # noqa: E402
from experiments.serve import command  # noqa: E402
from experiments.serve.batcher import Batcher, QueueFullError  # noqa: E402
from experiments.serve.service import Limits, make_app  # noqa: E402
from jsage import data  # noqa: E402
from jsage.data import Dataset  # noqa: E402
from jsage.graph import from_edges  # noqa: E402
from jsage.nn import GraphSAGE  # noqa: E402
from jsage.sampling import sample_blocks_by_node  # noqa: E402
from jsage.serving import export  # noqa: E402

ROOT = Path(__file__).parents[2]
JSON = {"Content-Type": "application/json"}
NUM_NODES, WIDTH, CLASSES = 200, 5, 4
PLAN = export.Plan((3, 2), sizes=(1, 8), new_sizes=(2,), new_edges=8, about={"task": "classification"})


def same(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


class Served:
    """A folder to serve, and what the model itself says of every node."""

    def __init__(self, folder: Path) -> None:
        random = np.random.default_rng(0)
        self.edges = random.integers(0, NUM_NODES, (2, 900), np.int32)
        self.features = random.normal(size=(NUM_NODES, WIDTH)).astype(np.float32)
        self.model = GraphSAGE(hidden=6, out=CLASSES)
        graph, features = from_edges(*self.edges, NUM_NODES), jnp.asarray(self.features)
        blocks = jax.eval_shape(self.blocks, graph, features)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0), features, blocks)
        self.variables = reference.filled(shapes)
        self.folder, self.rows = folder, self.direct(self.edges, self.features)
        export.save(folder / "artefact", self.model.apply, self.variables, graph, features, PLAN)
        ids = jnp.arange(3)
        data.save(folder / "graph", Dataset(graph, features, jnp.zeros(NUM_NODES, jnp.int32), ids, ids, ids))

    def blocks(self, graph, features):
        nodes = jnp.arange(features.shape[0])
        return sample_blocks_by_node(jax.random.key(0), graph, nodes, PLAN.fanouts)

    def direct(self, edges: np.ndarray, features: np.ndarray) -> np.ndarray:
        """The rows of all nodes of a graph."""
        run = lambda graph, h: self.model.apply(self.variables, h, self.blocks(graph, h))  # noqa: E731
        return np.asarray(jax.jit(run)(from_edges(*edges, len(features)), jnp.asarray(features)))


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Served:
    return Served(tmp_path_factory.mktemp("serve"))


class Server:
    """`python -m experiments.serve` on a free port, ready to answer."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "experiments.serve",
            "--artefact",
            str(folder),
            "--port",
            "0",
            *options,
        ]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"http://\S+", line):
                self.url = found[0]
                self.client = httpx.Client(base_url=self.url, timeout=60, verify=False)
                return
        raise RuntimeError(f"the server ended with status {self.process.wait()}")

    def post(self, path: str, body: Any) -> Any:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(path, content=content, headers=JSON)

    def metrics(self) -> dict[str, float]:
        return samples(self.client.get("/metrics").text)

    def stop(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def server(served) -> Iterator[Server]:
    started = Server(served.folder, "--max-body", "20000", "--max-nodes", "500")
    yield started
    started.stop()


def samples(text: str) -> dict[str, float]:
    """A page of metrics by name and labels; an AssertionError for a line that is no Prometheus text."""
    label = r'[a-z_]+="(?:[^"\\\n]|\\["\\n])*"'
    found: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            _, word, name, rest = line.split(" ", 3)
            assert word in ("HELP", "TYPE")
            if word == "TYPE":
                assert name not in kinds
                kinds[name] = rest
            continue
        match = re.fullmatch(rf"([a-z_]+)(\{{{label}(?:,{label})*\}})? (\S+)", line)
        assert match, line
        base = re.sub(r"_(bucket|sum|count)$", "", match[1])
        assert kinds.get(match[1]) in ("counter", "gauge") or kinds.get(base) == "histogram", line
        found[match[1] + (match[2] or "")] = float(match[3])
    return found


class TestAnswers:
    @pytest.mark.slow
    def test_concurrent_requests_get_the_model_s_rows_and_compile_nothing(self, served, server):
        before = server.metrics()
        random = np.random.default_rng(0)
        requests = [
            random.integers(0, NUM_NODES, size).tolist() for size in (*[1] * 60, *[5] * 30, 8, 9, 100, 500)
        ]
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda nodes: server.post("/embed", {"nodes": nodes}), requests))
        for nodes, answer in zip(requests, answers, strict=True):
            assert answer.status_code == 200
            same(answer.json()["embeddings"], served.rows[nodes])
        after = server.metrics()
        assert after["jsage_compilations_total"] == before["jsage_compilations_total"]
        total = sum(map(len, requests))
        assert after["jsage_batch_rows_sum"] - before["jsage_batch_rows_sum"] == total
        batches = after["jsage_batch_rows_count"] - before["jsage_batch_rows_count"]
        assert batches < len(requests) + total / 8

    def test_predictions_are_the_softmax(self, served, server):
        found = server.post("/predict", {"nodes": [7, 9, 7]}).json()
        rows = np.exp(served.rows[[7, 9, 7]].astype(np.float64))
        np.testing.assert_allclose(found["probabilities"], rows / rows.sum(1, keepdims=True), rtol=1e-5)
        assert found["classes"] == served.rows[[7, 9, 7]].argmax(1).tolist()

    def test_new_nodes(self, served, server):
        rows = np.random.default_rng(1).normal(size=(2, WIDTH)).astype(np.float32)
        body = {"features": rows.tolist(), "src": [4, -1, -2, 9], "dst": [-1, -2, -1, -1]}
        one, two = NUM_NODES, NUM_NODES + 1
        edges = np.concatenate([served.edges, [[4, one, two, 9], [one, two, one, one]]], axis=1)
        expected = served.direct(edges.astype(np.int32), np.concatenate([served.features, rows]))[NUM_NODES:]
        found = server.post("/embed_new", body).json()["embeddings"]
        same(found, expected)
        assert server.post("/predict", body).json()["classes"] == expected.argmax(1).tolist()

    def test_an_answer_is_not_held_back(self, server):
        """Without TCP_NODELAY an answer on a kept connection waits 40 ms for an acknowledgement."""
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
        times = []
        for _ in range(41):
            began = time.perf_counter()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            times.append(time.perf_counter() - began)
        connection.close()
        assert np.median(times) < 0.035

    def test_the_page_about_it(self, server):
        """Every path with its method, examples that are answered, and each status that a test has seen."""
        page = server.client.get("/openapi.json").json()
        assert page["openapi"] == "3.1.0"
        app = make_app(fake(), Limits())
        routes: Any = app.routes
        documented = {(path, method) for path, methods in page["paths"].items() for method in methods}
        assert documented == {(r.path, m.lower()) for r in routes for m in r.methods - {"HEAD"}}
        for path, methods in page["paths"].items():
            if (about := methods.get("post")) is None:
                assert server.client.get(path).status_code == 200
                continue
            schema = about["requestBody"]["content"]["application/json"]["schema"]
            for one in schema.get("anyOf", [schema]):
                assert one["required"] == [*one["properties"]]
                answer = server.post(path, one["examples"][0])
                assert answer.status_code == 200
                content = about["responses"]["200"]["content"]["application/json"]["schema"]
                assert sorted(answer.json()) == sorted(content["required"])
            statuses = {str(status) for _, _, status, _ in BAD.values()} - {"404"}
            assert statuses < about["responses"].keys()

    def test_no_nodes(self, server):
        assert server.post("/embed", {"nodes": []}).json() == {"embeddings": []}
        assert server.post("/predict", {"nodes": []}).json() == {"classes": [], "probabilities": []}

    def test_health(self, server):
        found = server.client.get("/healthz").json()
        assert found["status"] == "ok"
        assert (found["nodes"], found["features"], found["width"]) == (NUM_NODES, WIDTH, CLASSES)

    def test_metrics_are_prometheus_text(self, server):
        server.post("/embed", {"nodes": [1]})
        answer = server.client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        found = samples(answer.text)
        count = found['jsage_requests_total{path="/embed",status="200"}']
        assert count >= 1
        assert found['jsage_request_seconds_bucket{le="+Inf",path="/embed"}'] >= count
        assert found["jsage_queue_rows"] == 0
        assert found["jsage_nodes"] == NUM_NODES


ROW = [0.0] * WIDTH
NEW = {"features": [ROW], "src": [], "dst": []}
BAD: dict[str, tuple[str, Any, int, str]] = {
    "not JSON": ("/embed", b"{", 400, "the body must be JSON, got 1 bytes"),
    "not UTF-8": ("/embed", b"\xff\xfe{", 400, "the body must be JSON"),
    "empty": ("/embed", b"", 400, "the body must be JSON, got 0 bytes"),
    "UTF-16": ("/embed", '{"nodes": [1]}'.encode("utf-16"), 400, "the body must be JSON"),
    "UTF-8 with a mark": ("/embed", b'\xef\xbb\xbf{"nodes": [1]}', 400, "the body must be JSON"),
    "half a pair": ("/embed", b'{"\\ud800": [1]}', 400, "the object must have nodes"),
    "deep": ("/embed", b"[" * 10_000, 400, "a body is nested at most 8 deep, got 10000"),
    "as deep as Python reads": ("/embed", b"[" * 965 + b"]" * 965, 400, "at most 8 deep, got 965"),
    "nested nodes": ("/embed", {"nodes": [[[[[[[]]]]]]]}, 400, r"nodes must be a list of integers"),
    "brackets in a text": ("/embed", {"nodes": ["[[[[[[[[[[[["]}, 400, r"nodes must be a list of integers"),
    "a list": ("/embed", [1], 400, "the body must be a JSON object, got list"),
    "no nodes": ("/embed", {"node": [1]}, 400, r"the object must have nodes, got \[\"node\"\]"),
    "nodes are no list": ("/embed", {"nodes": 3}, 400, "nodes must be a list, got 3"),
    "strings": (
        "/embed",
        {"nodes": ["a"]},
        400,
        r"nodes must be a list of integers .*no names.*, got \[\"a\"\]",
    ),
    "booleans": ("/embed", {"nodes": [True]}, 400, "nodes must be a list of integers"),
    "fractions": ("/predict", {"nodes": [1.5]}, 400, "nodes must be a list of integers"),
    "beyond": ("/embed", {"nodes": [0, 200]}, 400, "nodes must be node ids in 0 .. 199, got 200"),
    "negative": ("/embed", {"nodes": [-1]}, 400, "nodes must be node ids in 0 .. 199, got -1"),
    "huge": ("/embed", {"nodes": [10**30]}, 400, "nodes must hold integers, got object"),
    "many digits": ("/embed", b'{"nodes": [' + b"9" * 5000 + b"]}", 400, "the body must be JSON"),
    "many nodes": ("/embed", {"nodes": [1] * 501}, 413, "at most 500 nodes, got 501"),
    "many bytes": ("/embed", b"x" * 20_001, 413, "a body has at most 20000 bytes"),
    "very many bytes": ("/embed", b" " * 4_000_000, 413, "a body has at most 20000 bytes"),
    "no such path": ("/nothing", {}, 404, 'POST "/nothing": Not Found'),
    "a slash too many": ("/embed/", {}, 404, "Not Found"),
    "NaN": ("/embed_new", b'{"features": [[NaN]], "src": [], "dst": []}', 400, "NaN is no number in JSON"),
    "infinite": ("/embed_new", {**NEW, "features": [[1e39] * WIDTH]}, 400, "must be finite in float32"),
    "overflow": ("/embed_new", {**NEW, "features": [[3e38] * WIDTH]}, 422, "overflows on these features"),
    "narrow": ("/embed_new", {**NEW, "features": [[0.0]]}, 400, r"must be any x 5 numbers, got float64 of"),
    "ragged": ("/embed_new", {**NEW, "features": [ROW, [0.0]]}, 400, "got rows of unequal lengths"),
    "words": ("/embed_new", {**NEW, "features": [["a"] * WIDTH]}, 400, "features must be any x 5 numbers"),
    "no edges": ("/embed_new", {"features": [ROW]}, 400, "the object must have features, src, dst"),
    "one end": ("/embed_new", {**NEW, "src": [1]}, 400, "one entry an edge each, got 1 and 0"),
    "no such new node": ("/embed_new", {**NEW, "src": [-2], "dst": [1]}, 400, r"new ones -1 .. -1, got -2"),
    "huge end": ("/embed_new", {**NEW, "src": [10**30], "dst": [-1]}, 400, "src must be known nodes"),
    "old edge": ("/embed_new", {**NEW, "src": [1], "dst": [2]}, 400, "start or end at a new node"),
    "many new nodes": ("/predict", {**NEW, "features": [ROW] * 3}, 413, "at most 2 new nodes"),
}


class TestBadRequests:
    @pytest.mark.parametrize("case", BAD)
    def test_says_what_is_wrong(self, server, case):
        path, body, status, message = BAD[case]
        answer = server.post(path, body)
        assert answer.status_code == status
        assert re.search(message, answer.json()["error"]), answer.json()["error"]

    def test_a_body_in_pieces_has_the_same_limit(self, server):
        answer = server.client.post("/embed", content=(b"x" * 1000 for _ in range(50)), headers=JSON)
        assert answer.status_code == 413

    @pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "text/json"])
    def test_what_any_web_page_may_send(self, server, kind):
        headers = {} if kind is None else {"Content-Type": kind}
        answer = server.client.post("/embed", content=b'{"nodes": [1]}', headers=headers)
        assert answer.status_code == 415
        expected = "the Content-Type must be application/json (curl --json), got "
        assert answer.json()["error"] == f'{expected}"{kind or "nothing"}"'

    def test_json_whatever_the_case_and_parameters(self, server):
        headers = {"Content-Type": "Application/JSON; charset=utf-8"}
        answer = server.client.post("/embed", content=b'{"nodes": [1]}', headers=headers)
        assert answer.status_code == 200

    def test_a_page_whose_name_leads_here(self, server):
        answer = server.client.get("/healthz", headers={"Host": "rebound.example"})
        assert answer.status_code == 400

    def test_wrong_method(self, server):
        answer = server.client.get("/embed")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"
        assert server.client.delete("/healthz").json() == {"error": 'DELETE "/healthz": Method Not Allowed'}

    def test_random_nonsense_is_refused_and_hurts_nobody(self, served, server):
        random = np.random.default_rng(0)
        good = json.dumps({"features": [ROW], "src": [1, -1], "dst": [-1, 1]}).encode()
        atoms = [None, True, 1e308, -5, 2**63, "x", [], {}, [[]], [None], {"nodes": {}}, [[1, 2], [3]]]
        for turn in range(300):
            path = ("/embed", "/predict", "/embed_new")[turn % 3]
            if turn % 2:
                body = bytearray(good)
                for position in random.integers(0, len(body), 4):
                    body[position] = random.integers(0, 256)
                content = bytes(body)
            else:
                names = ("nodes", "features", "src", "dst", "other")
                picks = random.integers(0, len(atoms), len(names))
                chosen = random.uniform(size=len(names)) < 0.7
                pairs = zip(names, picks, chosen, strict=True)
                content = json.dumps({name: atoms[i] for name, i, there in pairs if there}).encode()
            answer = server.post(path, content)
            assert answer.status_code in (200, 400, 413, 422), (content, answer.text)
            if answer.status_code == 200:  # a change that left it legal
                json.loads(content)
            else:
                assert answer.json().keys() == {"error"}
        assert server.post("/embed", {"nodes": [3]}).status_code == 200

    def test_a_connection_that_breaks_off_hurts_nobody(self, server):
        host, port = server.url.removeprefix("http://").split(":")
        for text in (
            b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{",
            b"\x00\x01 nonsense\r\n\r\n",
        ):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(text)
        assert server.post("/embed", {"nodes": [3]}).status_code == 200


def test_the_benchmark_counts_wrong_answers(served, server):
    rows = served.rows[[3]]
    asked = [benchmark.Request("/embed", benchmark.encoded({"nodes": [3]}), rows + wrong) for wrong in (0, 1)]
    found = benchmark.load(server.url.removeprefix("http://"), "embed", asked, 2, 0.2)
    assert found["requests"] > 0
    assert found["failed"] == 0
    assert found["wrong"] > 0
    assert benchmark.load(server.url.removeprefix("http://"), "embed", asked[:1], 2, 0.2)["wrong"] == 0


def test_the_soak_s_bodies_are_refused_and_counted(served, server, monkeypatch):
    monkeypatch.setattr(soak, "BIG", 50_000)
    new = benchmark.encoded({"features": [[0.0] * WIDTH], "src": [], "dst": []})
    good = benchmark.Request("/embed", benchmark.encoded({"nodes": [3]}), served.rows[[3]])
    asked = {"embed": [good], "embed_new": [benchmark.Request("/embed_new", new, served.rows[[3]])]}
    address = server.url.removeprefix("http://")
    found = soak.malformed(address, server.process.pid, asked, 180)
    assert (found["refused"], found["other"], found["alive"]) == (180, 0, True)
    asked["embed"] = [good._replace(rows=good.rows + 1)]
    assert not soak.malformed(address, server.process.pid, asked, 10)["alive"]


@pytest.mark.slow
def test_no_request_is_lost_when_the_service_stops_under_load(served):
    server = Server(served.folder)
    good = benchmark.Request("/embed", benchmark.encoded({"nodes": [3]}), served.rows[[3]])
    found = soak.stop(server.url.removeprefix("http://"), server.process, {"embed": [good]}, 4, 0.5)
    server.stop()
    assert (found["wrong"], found["lost"], found["status"]) == (0, 0, 0)
    assert found["right"] > 0
    assert found["refused"] == 4


@pytest.mark.slow
def test_sigterm_answers_what_has_arrived_and_ends_with_status_0(served):
    server = Server(served.folder, "--wait", "3000")
    requests = [[node] for node in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(server.post, "/embed", {"nodes": nodes}) for nodes in requests]
        while server.metrics()["jsage_queue_rows"] < 6:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(httpx.ConnectError):
            httpx.post(server.url + "/embed", json={"nodes": [1]}, verify=False)
        for nodes, answer in zip(requests, answers, strict=True):
            assert answer.result().headers["connection"] == "close"
            same(answer.result().json()["embeddings"], served.rows[nodes])
    assert server.process.wait(timeout=30) == 0
    server.stop()


def fake(seconds: float = 0.0, width: int = 2, *, failing: bool = False) -> Any:
    """An embedder of ten nodes that takes its time."""

    def embed(nodes):
        time.sleep(seconds)
        if failing:
            raise MemoryError("no")
        return np.asarray(nodes, np.float32)[:, None] * np.ones((1, width), np.float32)

    meta = {
        "about": {},
        "output": {"width": width},
        "features": {"width": 3, "words": 0},
        "tables": {},
        "fanouts": [],
        "programs": [],
        "new_edges": 1,
        "versions": {},
    }
    return SimpleNamespace(meta=meta, num_nodes=10, sizes=lambda function: [2, 4], embed=embed)


class TestLimits:
    """The service in this process, on a model that takes its time."""

    @asynccontextmanager
    async def client(self, limits: Limits, seconds: float = 0.0, failing: bool = False):
        app = make_app(fake(seconds, failing=failing), limits)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://a") as client,
        ):
            yield client

    def run(self, work: Callable[[], Any]) -> Any:
        return asyncio.run(work())

    def test_an_answer_that_takes_too_long_is_504(self):
        async def work():
            async with self.client(Limits(seconds=0.05), seconds=0.3) as client:
                return await client.post("/embed", json={"nodes": [1]})

        answer = self.run(work)
        assert answer.status_code == 504
        assert answer.json()["error"] == "no answer within 0.05 s: try later"

    def test_a_body_that_takes_too_long_is_408(self):
        async def slow():
            yield b"{"
            await asyncio.sleep(0.3)
            yield b"}"

        async def work():
            async with self.client(Limits(seconds=0.05)) as client:
                return await client.post("/embed", content=slow(), headers=JSON)

        assert self.run(work).status_code == 408

    def test_a_full_queue_is_503(self):
        async def work():
            async with self.client(Limits(waiting=4, wait=0.2)) as client:
                calls = (client.post("/embed", json={"nodes": [1]}) for _ in range(3))
                many = client.post("/embed", json={"nodes": [1] * 3})
                return await asyncio.gather(*calls, many)

        answers = self.run(work)
        assert [answer.status_code for answer in answers] == [200, 200, 200, 503]
        assert "3 rows wait, at most 4 may: try later" in answers[3].json()["error"]

    def test_a_failure_is_500_and_says_nothing_more(self):
        async def work():
            async with self.client(Limits(), failing=True) as client:
                return [await client.post("/embed", json={"nodes": [1]}) for _ in range(2)]

        answers = self.run(work)
        assert [answer.status_code for answer in answers] == [500, 500]
        assert answers[0].json() == {"error": "the service failed: its log says why"}

    def test_every_series_by_name_and_labels(self):
        """Dashboards and alarms are written on these. No service counts what another one answered."""

        async def work():
            async with self.client(Limits(wait=0.5)) as client, self.client(Limits()) as other:
                await asyncio.gather(*(client.post("/embed", json={"nodes": [1, i]}) for i in range(2)))
                await client.post('/a"b', json={})
                return [(await one.get("/metrics")).text for one in (client, other)]

        text, untouched = self.run(work)
        found = samples(text)
        bounds = ["0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]
        bounds += ["1.0", "2.0", "5.0", "10.0", "+Inf"]
        expected = {
            "jsage_batch_rows_count": 1,
            "jsage_batch_rows_sum": 4,
            'jsage_batch_rows_bucket{le="2.0"}': 0,
            'jsage_batch_rows_bucket{le="4.0"}': 1,
            'jsage_batch_rows_bucket{le="+Inf"}': 1,
            "jsage_queue_rows": 0,
            "jsage_held_bytes": 0,
            "jsage_nodes": 10,
            'jsage_requests_total{path="/embed",status="200"}': 2,
            'jsage_requests_total{path="other",status="404"}': 1,
        }
        timed = {"jsage_batch_seconds_sum", "jsage_batch_seconds_count", "jsage_compilations_total"}
        timed |= {f'jsage_batch_seconds_bucket{{le="{le}"}}' for le in bounds}
        for path in ("/embed", "other"):
            timed |= {f'jsage_request_seconds_{end}{{path="{path}"}}' for end in ("sum", "count")}
            timed |= {f'jsage_request_seconds_bucket{{le="{le}",path="{path}"}}' for le in bounds}
        assert found.keys() == expected.keys() | timed
        assert {name: found[name] for name in expected} == expected
        assert found['jsage_request_seconds_bucket{le="+Inf",path="/embed"}'] == 2
        assert found["jsage_batch_seconds_count"] == 1
        assert samples(untouched)["jsage_batch_rows_count"] == 0
        assert "jsage_requests_total{" not in untouched

    def test_a_model_without_classes_predicts_none(self):
        async def work():
            async with self.client(Limits()) as client:
                return await client.post("/predict", json={"nodes": [1]})

        answer = self.run(work)
        assert answer.status_code == 404
        assert "predicts no classes or labels" in answer.json()["error"]


class TestBatcher:
    def batches(self, work: Callable, *, wait: float = 0.02, limit: int = 100, seconds: float = 0.0):
        """The batches that ran, and what `work(batcher)` gave."""
        seen: list[list[int]] = []

        def run(nodes):
            seen.append(nodes.tolist())
            time.sleep(seconds)
            return nodes * 10

        async def main():
            with ThreadPoolExecutor(1) as pool:
                batcher = Batcher(run, 4, pool, wait=wait, limit=limit)
                task = asyncio.create_task(batcher.work())
                result = await work(batcher)
                task.cancel()
                return result, batcher.waiting

        result, waiting = asyncio.run(main())
        assert waiting == 0
        return seen, result

    def test_requests_at_once_share_batches_and_get_their_own_rows(self):
        async def work(batcher):
            parts = [np.array(part) for part in ([1], [2, 3], [4], [5, 6])]
            return await asyncio.gather(*map(batcher.submit, parts))

        seen, result = self.batches(work)
        assert seen == [[1, 2, 3, 4], [5, 6]]
        assert [rows.tolist() for rows in result] == [[10], [20, 30], [40], [50, 60]]

    def test_a_long_request_is_split_and_an_empty_one_answered(self):
        async def work(batcher):
            return await asyncio.gather(batcher.submit(np.arange(10)), batcher.submit(np.zeros(0, int)))

        seen, (rows, none) = self.batches(work)
        assert rows.tolist() == [10 * i for i in range(10)]
        assert len(none) == 0
        assert max(map(len, seen)) == 4

    def test_a_full_batch_does_not_wait(self):
        async def work(batcher):
            began = time.perf_counter()
            await batcher.submit(np.arange(4))
            return time.perf_counter() - began

        assert self.batches(work, wait=5.0)[1] < 2.0

    def test_what_nobody_waits_for_does_not_run(self):
        async def work(batcher):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(batcher.submit(np.array([7])), 0.01)
            return await batcher.submit(np.array([8]))

        seen, rows = self.batches(work, wait=0.1)
        assert rows.tolist() == [80]
        assert seen == [[8]]

    def test_a_full_queue_refuses_at_once(self):
        async def work(batcher):
            first = asyncio.create_task(batcher.submit(np.arange(3)))
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError, match="3 rows wait, at most 3 may"):
                await batcher.submit(np.array([9]))
            return await first

        assert self.batches(work, limit=3)[0] == [[0, 1, 2]]


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert command.run(["--artefact", str(tmp_path)]) == 2
    assert re.search(
        r"FileNotFoundError: .*meta.json is missing: .* is not an artefact", capsys.readouterr().err
    )
    assert command.run(["--export", str(tmp_path)]) == 2
    assert "exists already: pass --artefact" in capsys.readouterr().err
