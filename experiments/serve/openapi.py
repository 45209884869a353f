"""The service described in OpenAPI 3.1, for `GET /openapi.json`."""

from typing import Any

ROWS = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
REFUSALS = {
    "400": "Not what the schema says, or no HTTP.",
    "408": "The headers or the body took too long.",
    "413": "More bytes, nodes or edges than the limits.",
    "415": "Not sent as application/json.",
    "422": "The model overflows on these features.",
    "431": "Headers of more bytes than the limit.",
    "500": "The service failed.",
    "503": "Too much is waiting: try later.",
    "504": "No answer in time: try later.",
}


def describe(meta: dict, num_nodes: int, limits: Any, asked: list[str], *, named: bool) -> dict:
    """Paths, bodies, answers and limits of a service on an artefact with this `meta`.

    `asked` are the data of edges that new nodes come with; `named`: nodes have names.
    """
    name: list[dict] = [{"type": "string"}] if named else []
    known, new = _known(num_nodes, limits, name), _new(meta, num_nodes, asked, name)
    task = meta["about"].get("task")
    names: dict = {"names": {"type": "array", "items": name[0]}} if named else {}
    embeddings = _object({"embeddings": ROWS}, names)
    found = {"type": "array", "items": {"type": "integer"}}
    called = {"classes": found} if task == "classification" else {"labels": {"type": "array", "items": found}}
    paths = {
        "/embed": _post("Rows of known nodes.", known, embeddings),
        "/embed_new": _post("Rows of nodes that are not in the graph.", new, embeddings),
        "/predict": _post(
            f"Predictions ({task}) for known nodes or new ones; 404 where the model makes none.",
            {"anyOf": [known, new]},
            _object({**called, "probabilities": ROWS}, names),
        ),
        "/healthz": _get("What is served.", "application/json", {"type": "object"}),
        "/metrics": _get("Prometheus' text.", "text/plain", {"type": "string"}),
        "/openapi.json": _get("This page.", "application/json", {"type": "object"}),
    }
    text = f"Bodies are UTF-8 JSON of at most {limits.body} bytes, nested at most {limits.depth} deep."
    info = {"title": "jsage", "version": meta["versions"].get("jsage", "unknown"), "description": text}
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def _known(num_nodes: int, limits: Any, name: list[dict]) -> dict:
    node: dict = {"type": "integer", "minimum": 0, "maximum": num_nodes - 1}
    node = {"anyOf": [node, *name]} if name else node
    schema = _object({"nodes": {"type": "array", "items": node, "maxItems": limits.nodes}})
    return schema | {"examples": [{"nodes": [0]}]}


def _new(meta: dict, num_nodes: int, data: list[str], name: list[dict]) -> dict:
    """New nodes: node `i` of a request is -1 - i."""
    most = max((entry["size"] for entry in meta["programs"] if entry["function"] == "embed_new"), default=0)
    width = meta["features"]["width"]
    row = {"type": "array", "items": {"type": "number"}, "minItems": width, "maxItems": width}
    end: dict = {"type": "integer", "minimum": -most, "maximum": num_nodes - 1}
    end = {"anyOf": [end, *name]} if name else end
    edges = {"type": "array", "maxItems": most * meta["new_edges"]}
    example: dict[str, Any] = {"features": [[0.0] * width], "src": [], "dst": []} | {
        name: [] for name in data
    }
    fields = {"features": {"type": "array", "items": row, "maxItems": most}}
    fields |= {name: edges | {"items": end} for name in ("src", "dst")} | {name: edges for name in data}
    text = "Row i of features is node -1 - i among the ends; every edge starts or ends at one of them."
    return _object(fields) | {"description": text, "examples": [example]}


def _object(fields: dict, perhaps: dict | None = None) -> dict:
    """These fields, and no others but those that only some answers have."""
    some = {"properties": {**fields, **(perhaps or {})}, "required": [*fields]}
    return {"type": "object", **some, "additionalProperties": False}


def _post(summary: str, body: dict, answer: dict) -> dict:
    said = {"application/json": {"schema": _object({"error": {"type": "string"}})}}
    responses = {"200": {"description": "Done.", "content": {"application/json": {"schema": answer}}}}
    responses |= {status: {"description": text, "content": said} for status, text in REFUSALS.items()}
    content = {"application/json": {"schema": body}}
    return {
        "post": {"summary": summary, "requestBody": {"required": True, "content": content}}
        | {"responses": responses}
    }


def _get(summary: str, kind: str, schema: dict) -> dict:
    return {
        "get": {
            "summary": summary,
            "responses": {"200": {"description": summary, "content": {kind: {"schema": schema}}}},
        }
    }
