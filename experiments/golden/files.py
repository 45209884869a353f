"""Files of golden values: a graph, and cases of a layer with parameters, outputs and gradients."""

import json
import re
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Arrays = Mapping[str, np.ndarray]

GAT = {"heads": 2}
NO_LOOPS = {"add_self_loops": False}
PLAIN: dict[str, tuple[str, dict[str, Any], str]] = {
    "gcn": ("GCNConv", {}, ""),
    "gcn_weight": ("GCNConv", {}, "edge_weight"),
    "gcn_improved": ("GCNConv", {"improved": True}, ""),
    "gcn_plain": ("GCNConv", {"normalize": False, "bias": False}, "edge_weight"),
    "gat": ("GATConv", GAT, ""),
    "gat_noloop": ("GATConv", GAT | NO_LOOPS, ""),
    "gat_mean": ("GATConv", {"heads": 3, "concat": False, "negative_slope": 0.1}, ""),
    "gat_edge": ("GATConv", GAT, "edge_attr"),
    "gat_edge_noloop": ("GATConv", GAT | NO_LOOPS, "edge_attr"),
    "gat_residual": ("GATConv", GAT | {"residual": True, "bias": False}, ""),
    "gatv2": ("GATv2Conv", GAT, ""),
    "gatv2_noloop": ("GATv2Conv", GAT | NO_LOOPS, ""),
    "gatv2_share": ("GATv2Conv", GAT | {"concat": False, "share_weights": True}, ""),
    "gatv2_edge": ("GATv2Conv", GAT | NO_LOOPS, "edge_attr"),
    "transformer": ("TransformerConv", GAT, ""),
    "transformer_beta": ("TransformerConv", GAT | {"beta": True}, ""),
    "transformer_edge": ("TransformerConv", GAT, "edge_attr"),
    "transformer_mean_noroot": (
        "TransformerConv",
        {"heads": 3, "concat": False, "root_weight": False, "bias": False},
        "",
    ),
    "gine": ("GINEConv", {}, "edge_attr"),
}
"""What the cases of a file without a `config` are: class, arguments, inputs beside x and edge_index"""


TIMES = {"positional": "PositionalEncoding", "temporal": "TemporalEncoding"}
"""The encoders of times in such a file: their input is `time`"""
KINDS = {"rgcn": "RGCNConv", "cluster": "ClusterGCNConv", "hgt": "HGTConv", "hetero": "HeteroConv"}
"""The classes of such a file's other cases, by how their names begin"""


TYPED: dict[str, dict[str, Any]] = {
    "hetero_sage_sum": {"aggr": "sum", "convs": "SAGEConv"},
    "hetero_sage_mean": {"aggr": "mean", "convs": "SAGEConv"},
    "hetero_sage_max": {"aggr": "max", "convs": "SAGEConv"},
    "hetero_gat": {"aggr": "sum", "convs": "GATConv"},
}
"""How such a file's cases of types join relations, and what each relation has"""


class Case(NamedTuple):
    """One layer with its arguments, and what the other library made of its inputs."""

    name: str
    config: Mapping[str, Any]
    inputs: Arrays
    """`x`, or `x_src` and `x_dst`, or `x/TYPE`; `edge_index`, or one a relation;
    `edge_weight` or `edge_attr` where the layer reads them; of an encoder, `times`."""
    params: Arrays
    out: np.ndarray | None
    """Of a case of types: all types' one after another, sorted, as one axis."""
    loss_weight: np.ndarray | None
    """The cotangent of `out`; None: no gradients are given."""
    grads: Arrays
    """By input, and by `param/NAME`."""
    alpha: tuple[np.ndarray, np.ndarray] | None
    """Attention weights, and the edges that they belong to."""
    rounding: float

    @property
    def kind(self) -> str:
        """The class."""
        return self.config["class"]


def read_cases(path: str) -> list[Case]:
    """All cases of a file, in its order; ValueError for one that is of another kind or lacks something."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} must be an .npz file of golden values: {error}") from error
    if "cases" in arrays:
        try:
            return [_case(name, arrays) for name in json.loads(str(arrays["cases"]))]
        except KeyError as error:
            raise ValueError(f"{path} has no array {error}, which a case of it needs") from error
    names = dict.fromkeys(name.split("/")[0] for name in arrays if name.count("/") and "x" in arrays)
    if not names:
        raise ValueError(f"{path} has no list of `cases`, and no graph `x` and `edge_index` with plain ones")
    given = {name.partition("/out")[0] for name in arrays if "/out" in name}
    return [_plain(name, arrays) for name in names if name in given]


def _case(name: str, arrays: Arrays) -> Case:
    config, mine = json.loads(str(arrays[f"{name}/config"])), _below(f"{name}/", arrays)
    words = re.findall(r"\w+", " ".join(config.get("inputs", ()))) or ["times"] * (config["graph"] == "t")
    alpha = (mine["alpha"], mine["alpha_edge_index"]) if "alpha" in mine else None
    typed = config["class"] == "HeteroConv"
    return Case(
        name,
        config,
        _typed("h/", arrays) if typed else {word: arrays[f"{config['graph']}/{word}"] for word in words},
        _below("param/", mine) | _below("buffer/", mine),
        _joined("out/", mine) if typed else mine.get("out"),
        _joined("loss_weight/", mine) if typed else mine.get("loss_weight"),
        _below("grad/", mine),
        alpha,
        float(np.max(mine.get("err64", 0.0))),
    )


def _plain(name: str, arrays: Arrays) -> Case:
    first = name.split("_")[0]
    kind, kwargs, more = PLAIN.get(name, (KINDS.get(first, first), {}, ""))
    mine = _below(f"{name}/", arrays)
    if kind == "HeteroConv":
        config = {"class": kind, "args": [], "kwargs": {}, **TYPED[name]}
        params = {key: x for key, x in mine.items() if not key.startswith("out/")}
        return Case(
            name, config, _typed("typed/", arrays), params, _joined("out/", mine), None, {}, None, 0.0
        )
    inputs = {word: arrays[word] for word in ("x", "edge_index", *more.split())}
    if name in TIMES:
        kind, inputs = TIMES[name], {"times": arrays["time"]}
    alpha = (mine["alpha"], mine["alpha_index"]) if "alpha" in mine else None
    params = {key: value for key, value in mine.items() if key not in ("out", "alpha", "alpha_index")}
    config = {"class": kind, "args": [], "kwargs": kwargs}
    return Case(name, config, inputs, params, mine.get("out"), None, {}, alpha, 0.0)


def _typed(prefix: str, arrays: Arrays) -> dict[str, np.ndarray]:
    """Features and edges of a graph with types."""
    return {key: x for key, x in _below(prefix, arrays).items() if key.startswith(("x/", "edge_index/"))}


def _joined(prefix: str, arrays: Arrays) -> np.ndarray | None:
    """All types' rows one after another."""
    rows = sorted(_below(prefix, arrays).items())
    return np.concatenate([x.ravel() for _, x in rows]) if rows else None


def _below(prefix: str, arrays: Arrays) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: x for name, x in arrays.items() if name.startswith(prefix)}
