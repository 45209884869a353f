"""What `meta.json` must look like."""

import re
from typing import Any

import jax.numpy as jnp

SPEC = {"shape": str, "dtype": str}
"""An array's, such as `num_nodes, 64` of `float32`."""
FORM = {
    "versions": {"jax": str},
    "fanouts": [int],
    "new_edges": int,
    "platforms": [str],
    "about": {str: object},
    "tables": {"indptr": SPEC, "indices": SPEC, "features": SPEC, str: SPEC},
    "params": [{"name": str, **SPEC}],
    "programs": [{"function": str, "size": int, "file": str, "inputs": {str: SPEC}}],
    "output": {"width": int, "dtype": str},
    "files": {str: {"bytes": int, "sha256": str}},
}
SHAPES = {"indptr": r"num_nodes \+ 1", "indices": "num_edges", "features": r"num_nodes, [1-9]\d*"}
EDGE_DATA = r"num_edges(, [1-9]\d*)*"


def inputs_of(tables: dict[str, dict], function: str, size: int, new_edges: int) -> dict[str, dict]:
    """What a program takes beside parameters and tables: seeds, or new nodes with their edges.

    >>> inputs_of({}, "embed", 16, 0)
    {'seeds': {'shape': '16', 'dtype': 'int32'}}
    """
    if function == "embed":
        return {"seeds": {"shape": str(size), "dtype": "int32"}}
    edges = str(size * new_edges)
    data = {name: spec for name, spec in tables.items() if name.startswith("edge_")}
    rows = {"features": tables["features"], "src": tables["indices"], "dst": tables["indices"], **data}
    sized = {
        name: spec | {"shape": spec["shape"].replace("num_nodes", str(size)).replace("num_edges", edges)}
        for name, spec in rows.items()
    }
    return sized | {"num_nodes": {"shape": "", "dtype": "int32"}}


def check_meta(meta: Any) -> None:
    """ValueError unless this is what an export writes, names and numbers that belong together.

    >>> check_meta({"versions": {"jax": "0.10"}})
    Traceback (most recent call last):
    ValueError: the artefact must have fanouts, got ['versions']
    """
    _fits("", meta, FORM)
    numbers = [*meta["fanouts"], meta["new_edges"], meta["output"]["width"]]
    numbers += [entry["size"] for entry in meta["programs"]]
    _expect(
        not [n for n in numbers if n < 1], "fanouts, sizes, new_edges and width", "positive", min(numbers)
    )
    specs = [*meta["tables"].items(), *((entry["name"], entry) for entry in meta["params"])]
    for name, spec in [*specs, ("output", meta["output"])]:
        _expect(_numeric(spec["dtype"]), f"the dtype of {name}", "one of numbers", spec["dtype"])
    for name, spec in meta["tables"].items():
        shape = SHAPES.get(name, EDGE_DATA if name.startswith("edge_") else "no such table")
        _expect(re.fullmatch(shape, spec["shape"]), f"the shape of {name}", f"like {shape}", spec["shape"])
    for name in meta["files"]:
        plain = re.fullmatch(r"(loader/)?\w[\w.-]*", name)
        _expect(plain, "a file", "in the folder or its loader/", name)
    _check_programs(meta)


def _check_programs(meta: dict) -> None:
    programs = [(entry["function"], entry["size"]) for entry in meta["programs"]]
    functions = {name for name, _ in programs}
    wanted = "embed and perhaps embed_new"
    _expect({"embed"} <= functions <= {"embed", "embed_new"}, "functions", wanted, sorted(functions))
    _expect(len({*programs}) == len(programs), "programs", "of different sizes", sorted(programs))
    names = {"params.npz", *(entry["file"] for entry in meta["programs"])}
    _expect(names <= meta["files"].keys(), "files", f"to list {sorted(names)}", sorted(meta["files"]))
    for entry in meta["programs"]:
        inputs = inputs_of(meta["tables"], entry["function"], entry["size"], meta["new_edges"])
        _expect(entry["inputs"] == inputs, f"the inputs of {entry['file']}", str(inputs), entry["inputs"])


def _fits(where: str, value: Any, form: Any) -> None:
    """A type; `[form]` of every item; `{name: form}` of these at least, `{str: form}` of all others."""
    kind = form if isinstance(form, type) else type(form)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where or 'the artefact'} must be a {kind.__name__}, got {_short(value)}")
    parts = []
    if isinstance(form, list):
        parts = [(f"{where}[{i}]", item, form[0]) for i, item in enumerate(value)]
    elif isinstance(form, dict):
        if missing := [key for key in form if key is not str and key not in value]:
            raise ValueError(f"{where or 'the artefact'} must have {missing[0]}, got {_short([*value])}")
        forms = {key: form.get(key, form.get(str)) for key in value}
        parts = [(f"{where}.{key}".lstrip("."), value[key], form) for key, form in forms.items() if form]
    for part in parts:
        _fits(*part)


def _expect(right: Any, what: str, expected: str, got: Any) -> None:
    if not right:
        raise ValueError(f"{what} must be {expected}, got {_short(got)}")


def _numeric(name: str) -> bool:
    """Whether it is the name of a dtype of numbers or truth values."""
    try:
        dtype = jnp.dtype(name)
    except (TypeError, ValueError, SyntaxError):
        return False
    return dtype.name == name and (jnp.issubdtype(dtype, jnp.number) or name == "bool")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
