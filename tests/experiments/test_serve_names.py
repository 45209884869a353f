"""Names of nodes in requests and answers: text is a name, a number an id."""

from typing import Any

import numpy as np
import pytest

pytest.importorskip("httpx")
starlette = pytest.importorskip("starlette.testclient")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from test_serve import fake  # noqa: E402

from experiments.serve.names import Names  # noqa: E402
from experiments.serve.service import Limits, make_app  # noqa: E402

NAMES = [*"abcdefgh", "007", 'ë "\n']


@pytest.fixture(params=[NAMES, None], ids=["names", "none"])
def client(request):
    embedder, seen = fake(), {}
    embedder.meta["about"] = {"task": "classification"}
    embedder.meta["programs"] = [{"function": "embed_new", "size": 4}]
    embedder.meta["tables"]["indices"] = {"shape": "num_edges", "dtype": "int32"}
    embedder.meta["tables"]["features"] = {"shape": "num_nodes, 3", "dtype": "float32"}

    def embed_new(features, src, dst, edge_data):
        seen.update(src=src.tolist(), dst=dst.tolist())
        return np.zeros((len(features), 2), np.float32)

    embedder.embed_new = embed_new
    names = Names(request.param and np.array(request.param))
    with starlette.TestClient(make_app(embedder, Limits(), names=names)) as client:
        client.named, client.seen = bool(request.param), seen
        yield client


def post(client: Any, path: str, status: int, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_names_in_and_out(client):
    nodes = ["007", 3, NAMES[9]] if client.named else [8, 3, 9]
    embedded = post(client, "/embed", 200, nodes=nodes)
    assert embedded["embeddings"] == [[8, 8], [3, 3], [9, 9]]
    predicted = post(client, "/predict", 200, nodes=nodes)
    assert predicted["classes"] == [0, 0, 0]
    for answer in (embedded, predicted):
        assert answer.get("names") == (["007", "d", NAMES[9]] if client.named else None)
    assert client.get("/healthz").json()["names"] == client.named


def test_ends_of_edges_by_name(client):
    ends = {"src": ["b", -1, 2] if client.named else [1, -1, 2], "dst": [-1, 3, -1]}
    answer = post(client, "/embed_new", 200, features=[[0, 0, 0]], **ends)
    assert answer == {"embeddings": [[0, 0]]}
    assert client.seen == {"src": [1, -1, 2], "dst": [-1, 3, -1]}


def test_what_names_no_node_is_refused(client):
    said = post(client, "/embed", 400, nodes=["a", "nobody"])["error"]
    named = 'nodes must be names or ids of nodes, but none is named "nobody"'
    assert said.startswith(named if client.named else "nodes must be a list of integers (nodes of this graph")
    said = post(client, "/embed_new", 400, features=[[0, 0, 0]], src=["A"], dst=[-1])["error"]
    assert said.startswith('src must be names or ids of nodes, but none is named "A"') == client.named
    for odd in (True, None, 1.0, ["a"], {"a": 1}):
        assert "nodes must be a list of integers" in post(client, "/embed", 400, nodes=[odd])["error"]
    surrogate = client.post(
        "/embed", content=rb'{"nodes": ["\ud800"]}', headers={"content-type": "application/json"}
    )
    assert surrogate.status_code == 400


def test_the_page_says_whether_nodes_have_names(client):
    page = client.get("/openapi.json").json()["paths"]["/embed"]["post"]
    body, answer = (
        entry["content"]["application/json"]["schema"]["properties"]
        for entry in (page["requestBody"], page["responses"]["200"])
    )
    assert ("anyOf" in body["nodes"]["items"]) == client.named
    assert ("names" in answer) == client.named
