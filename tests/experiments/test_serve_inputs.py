"""The service does to raw features and edges what training did; and trains what it says."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

pytest.importorskip("httpx")
starlette = pytest.importorskip("starlette.testclient")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from experiments import classify  # noqa: E402
from experiments.common.config import Config  # noqa: E402
from experiments.serve import command  # noqa: E402
from experiments.serve.answers import classes, labels  # noqa: E402
from experiments.serve.inputs import prepare  # noqa: E402
from experiments.serve.service import Limits, make_app  # noqa: E402
from jsage import aggregate, data  # noqa: E402
from jsage.data import Dataset  # noqa: E402
from jsage.graph import Graph, edges, from_edges, symmetrize  # noqa: E402
from jsage.graph.overlay import NewNodes  # noqa: E402
from jsage.infer import embed_new  # noqa: E402
from jsage.nn import GraphSAGE, SAGEConv  # noqa: E402
from jsage.recipes import fit_scaling  # noqa: E402
from jsage.sampling import full_block  # noqa: E402
from jsage.serving import export, runtime  # noqa: E402

NODES, WIDTH = 30, 4
RNG = np.random.default_rng(0)
RAW = (RNG.normal(size=(NODES, WIDTH)) * [1, 5, 2e5, 0.1] + [0, 9, 1e5, 0]).astype(np.float32)
NEW = (RNG.normal(size=(2, WIDTH)) * [1, 5, 2e5, 0.1]).astype(np.float32)
SRC, DST = [3, -1, -2, 9, 3], [-1, 3, -1, -2, -2]
OWN = np.array([2.0, 1.0, 4.0, 0.5, 1.0], np.float32)


def whole(weighted: bool) -> Graph:
    graph = symmetrize(from_edges(*RNG.integers(0, NODES, (2, 60)), NODES))
    weight = RNG.uniform(0.5, 9, graph.num_edges).astype(np.float32)
    return graph._replace(edge_data={"weight": jax.device_put(weight)}) if weighted else graph


def weights(graph: Graph, src: Any = (), dst: Any = (), own: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric weights by loops: of the graph's edges, and of those of new nodes, whose degrees count."""
    first, last = (np.asarray(ends) for ends in edges(graph))
    given = np.asarray(graph.edge_data.get("weight", np.ones(len(first))), np.float64)
    unit = given.mean()
    into, out = {}, {}
    for u, v in zip(first.tolist(), last.tolist(), strict=True):
        into[v], out[u] = into.get(v, 0) + 1, out.get(u, 0) + 1
    ratio = lambda u, v: np.sqrt((1 + into.get(v, 0)) / (1 + out.get(u, 0)))  # noqa: E731
    known = [w / unit * ratio(u, v) for u, v, w in zip(first.tolist(), last.tolist(), given, strict=True)]
    for u, v in zip(src, dst, strict=True):
        into[v], out[u] = into.get(v, 0) + 1, out.get(u, 0) + 1
    own = np.ones(len(src)) if own is None else own / unit
    return np.array(known), np.array([w * ratio(u, v) for u, v, w in zip(src, dst, own, strict=True)])


@pytest.mark.parametrize("weighted", [False, True], ids=["no weights", "weights of its own"])
def test_raw_features_of_a_new_node_give_the_row_of_embed_new_on_scaled_ones(tmp_path: Path, weighted: bool):
    graph, scaling = whole(weighted), fit_scaling(RAW, np.arange(10))
    assert scaling.kind == "columns"
    own = OWN if weighted else None
    known, new = weights(graph, SRC, DST, own)
    weighed = graph._replace(edge_data={"weight": jax.device_put(known.astype(np.float32))})
    model = GraphSAGE(6, 2, conv=lambda *args, **more: SAGEConv(*args, aggregate=aggregate.gcn, **more))
    blocks = (full_block(weighed),) * 2
    variables = reference.filled(jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(RAW), blocks))
    about = {
        "task": "classification",
        "scaling": scaling.to_json(),
        "weights": "symmetric",
        "threshold": 0.25,
    }
    plan = export.Plan((40, 40), sizes=(4,), new_sizes=(2,), new_edges=4, about=about)
    export.save(tmp_path / "artefact", model.apply, variables, weighed, scaling(RAW), plan)
    ids = np.arange(3, dtype=np.int32)
    data.save(tmp_path / "graph", Dataset(graph, RAW, np.zeros(NODES, np.int32), ids, ids, ids))
    loaded = runtime.load(tmp_path / "artefact")
    dataset, inputs = prepare(loaded.meta["about"], data.open(tmp_path / "graph"))
    app = make_app(loaded.place(export.tables_of(dataset.graph, dataset.features)), Limits(), inputs=inputs)
    scaled, body = scaling(RAW), {"features": NEW.tolist(), "src": SRC, "dst": DST}
    if weighted:
        body["edge_weight"] = OWN.tolist()
    nodes = NewNodes(scaling(NEW), SRC, DST, {"weight": new.astype(np.float32)})
    expected = embed_new(model, variables, weighed, jnp.asarray(scaled), nodes)
    with starlette.TestClient(app) as client:
        answer = client.post("/embed_new", json=body)
        assert answer.status_code == 200, answer.text
        rows = np.array(answer.json()["embeddings"])
        np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        called = client.post("/predict", json=body).json()["classes"]
        assert called == (rows[:, 1] - rows[:, 0] > 0.25).astype(int).tolist()
        own_rows = np.array(client.post("/embed", json={"nodes": [*range(NODES)]}).json()["embeddings"])
        direct = jax.jit(model.apply)(variables, jnp.asarray(scaled), blocks)
        np.testing.assert_allclose(own_rows, direct, rtol=1e-4, atol=1e-4 * np.abs(direct).max())
        schema = client.get("/openapi.json").json()["paths"]["/embed_new"]["post"]["requestBody"]
        required = schema["content"]["application/json"]["schema"]["required"]
        assert ("edge_weight" in required) == weighted
        huge = client.post("/embed_new", json={**body, "features": [[3e38] * WIDTH] * 2})
        assert (huge.status_code, "beyond float32" in huge.json()["error"]) == (422, True)
        none = client.post(
            "/embed_new",
            json={**body, "features": NEW.tolist(), "src": [], "dst": []}
            | ({"edge_weight": []} if weighted else {}),
        )
        assert none.status_code == 200


def test_an_artefact_with_a_scaling_that_is_none_is_refused():
    ids = np.zeros(0, np.int32)
    dataset = Dataset(whole(False), RAW, None, ids, ids, ids)
    with pytest.raises(ValueError, match="expected a scaling as to_json writes it"):
        prepare({"scaling": {"kind": "columns"}}, dataset)
    with pytest.raises(ValueError, match="the artefact scales 2 features, and the graph has 4"):
        prepare({"scaling": fit_scaling(RAW[:, :2], kind="columns").to_json()}, dataset)
    same, inputs = prepare({"task": "classification"}, dataset)
    assert same is dataset
    assert (inputs.scaling, inputs.weigher) == (None, None)


def test_classes_and_labels_are_called_at_the_threshold():
    rows = np.array([[0.0, 0.5], [0.0, 1.5], [2.0, 0.0]])
    assert classes(rows, 0.0)["classes"] == [1, 1, 0]
    assert classes(rows, 1.0)["classes"] == [0, 1, 0]
    assert classes(np.eye(3), 1.0)["classes"] == [0, 1, 2]
    assert labels(rows, 0.4)["labels"] == [[1], [1], [0]]


@pytest.mark.slow
def test_what_is_served_is_what_classify_trains(tmp_path: Path, capsys):
    """The same score, to the digits that are shown, of the same options; and the numbers of its scaling."""
    options = command.parse(["--epochs", "20", "--sizes", "4"])
    command.train(options, tmp_path / "served")
    said = re.search(r"accuracy (\S+) on 997 test nodes", capsys.readouterr().out)
    assert said is not None
    result = classify.main(Config("digits", epochs=20))
    assert f"{result['test_mean']:.4f}" == said[1]
    meta = json.loads((tmp_path / "served" / "artefact" / "meta.json").read_text())["artefact"]
    assert meta["about"]["scaling"]["kind"] == "rows"
    assert meta["about"]["weights"] == "symmetric"
    raw = data.open(tmp_path / "served" / "graph")
    np.testing.assert_array_equal(raw.features, data.digits().features)
    dataset, _ = prepare(SimpleNamespace(**meta).about, raw)
    np.testing.assert_allclose(np.linalg.norm(dataset.features, axis=1), 1, rtol=1e-5)
