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
    "features": {"width": int, "words": int},
    "platforms": [str],
    "about": {str: object},
    "tables": {"indptr": SPEC, "indices": SPEC, str: SPEC},
    "params": [{"name": str, **SPEC}],
    "programs": [{"function": str, "size": int, "file": str, "inputs": {str: SPEC}}],
    "output": {"width": int, "dtype": str},
    "files": {str: {"bytes": int, "sha256": str}},
}
SHAPES = {"indptr": r"num_nodes \+ 1", "indices": "num_edges"}
EDGE_DATA = r"num_edges(, [1-9]\d*)*"
SPARSE = {
    "features_start": "num_nodes",
    "features_length": "num_nodes",
    "features_indices": "num_words",
    "features_values": "num_words",
}
"""Tables of sparse features: row `r` has `length[r]` words from `start[r]` on, each a column and a value."""


def inputs_of(meta: dict, function: str, size: int) -> dict[str, dict]:
    """What a program takes beside parameters and tables: seeds, times too, or new nodes with their edges.

    >>> inputs_of({}, "embed", 16)
    {'seeds': {'shape': '16', 'dtype': 'int32'}}
    """
    seeds = {"seeds": {"shape": str(size), "dtype": "int32"}}
    if function == "embed":
        return seeds
    tables = meta["tables"]
    if function == "embed_at":
        _expect("edge_time" in tables, "tables of embed_at", "of edges with times", sorted(tables))
        return seeds | {"times": {"shape": str(size), "dtype": tables["edge_time"]["dtype"]}}
    words = meta["features"]["words"]
    sizes = {"num_nodes": size, "num_edges": size * meta["new_edges"], "num_words": size * words}
    rows = {name: spec for name, spec in tables.items() if name not in ("indptr", "indices")}
    rows |= {"src": tables["indices"], "dst": tables["indices"]}
    sized = {name: spec | {"shape": _filled(spec["shape"], sizes)} for name, spec in rows.items()}
    return sized | {"num_nodes": {"shape": "", "dtype": "int32"}}


def _filled(shape: str, sizes: dict[str, int]) -> str:
    for name, size in sizes.items():
        shape = shape.replace(name, str(size))
    return shape


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
    _check_tables(meta)
    for name in meta["files"]:
        plain = re.fullmatch(r"(loader/)?\w[\w.-]*", name)
        _expect(plain, "a file", "in the folder or its loader/", name)
    _check_programs(meta)


def _check_tables(meta: dict) -> None:
    features, tables = meta["features"], meta["tables"]
    _expect(features["width"] > 0 <= features["words"], "features", "of a width, and words", features)
    given = {name for name in tables if name.startswith("features")}
    shapes = SPARSE if features["words"] else {"features": f"num_nodes, {features['width']}"}
    _expect(given == shapes.keys(), "tables", "those with " + ", ".join(shapes), sorted(given))
    for name, spec in tables.items():
        edge_data = EDGE_DATA if name.startswith("edge_") else "no such table"
        shape = {**SHAPES, **shapes}.get(name, edge_data)
        _expect(re.fullmatch(shape, spec["shape"]), f"the shape of {name}", f"like {shape}", spec["shape"])


def _check_programs(meta: dict) -> None:
    programs = [(entry["function"], entry["size"]) for entry in meta["programs"]]
    functions = {name for name, _ in programs}
    seeds, known = functions & {"embed", "embed_at"}, {"embed", "embed_at", "embed_new"}
    wanted = "embed or embed_at, and perhaps embed_new"
    _expect(seeds and functions <= known, "functions", wanted, sorted(functions))
    _expect(len({*programs}) == len(programs), "programs", "of different sizes", sorted(programs))
    names = {"params.npz", *(entry["file"] for entry in meta["programs"])}
    _expect(names <= meta["files"].keys(), "files", f"to list {sorted(names)}", sorted(meta["files"]))
    for entry in meta["programs"]:
        inputs = inputs_of(meta, entry["function"], entry["size"])
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
