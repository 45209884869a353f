"""PyG's layers as ours: the layer of a case, and its parameters from PyG's."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.golden.files import Case
from jsage import aggregate
from jsage.graph import Graph, gcn_weights, remove_self_loops
from jsage.nn import (
    LSTM,
    FourierTime,
    GATConv,
    GATv2Conv,
    GCNConv,
    GINEConv,
    HeteroConv,
    SAGEConv,
    Several,
    SinusoidalTime,
    Softmax,
    TransformerConv,
)
from jsage.typing import AggregateFn

Given = Mapping[str, jax.Array]
"""PyG's parameters, by their names."""
EDGE = "attr"


class Unsupported(Exception):
    """A case that is not built, and why."""


class Layer(NamedTuple):
    """A layer that computes what a case's does."""

    conv: Callable[..., nn.Module]
    """Makes it from `features=` and `dropout=`."""
    params: Callable[[Given], dict[str, Any]]
    """Its parameters from PyG's; differentiable, so that gradients come back in PyG's names."""
    graph: Callable[[Graph], Graph] = lambda graph: graph
    """The graph that it reads, from the case's."""
    note: str | None = None
    """What differs by design, and how it is compared all the same."""
    in_order: bool = False
    """Whether neighbors are read one after another."""
    unread: tuple[int, ...] = ()
    """Edges of the file whose weight is not read, though PyG gives it a gradient."""


def layer_of(case: Case) -> Layer:
    """The layer of a case, or Unsupported."""
    if case.out is None or case.kind not in LAYERS:
        raise Unsupported(NOT_YET.get(case.kind, f"there is no {case.kind}"))
    make, signature = LAYERS[case.kind]
    config = case.config
    given = dict(zip(signature, config.get("args", ()), strict=False)) | dict(config.get("kwargs", {}))
    if unknown := sorted(given.keys() - signature.keys()):
        raise Unsupported(f"no argument {', '.join(unknown)} of {case.kind} is known")
    return make(case, {**signature, **given})


def dense(p: Given, name: str) -> dict[str, jax.Array]:
    """A dense layer's kernel `[in, out]` and bias, from PyTorch's `[out, in]`."""
    bias = {"bias": p[f"{name}.bias"]} if f"{name}.bias" in p else {}
    return {"kernel": p[f"{name}.weight"].T, **bias}


def named(p: Given, **names: str) -> dict[str, Any]:
    """The dense layers that are there, by our names."""
    return {ours: dense(p, theirs) for ours, theirs in names.items() if f"{theirs}.weight" in p}


def gcn(case: Case, args: dict[str, Any]) -> Layer:
    """Its weights are those of the graph."""
    normalize, loops, loop = args["normalize"], args["add_self_loops"], 2.0 if args["improved"] else 1.0
    note = None
    if args["improved"] and "edge_weight" not in case.inputs:
        loop, note = 1.0, "PyG forgets improved=True where there are no weights: loops of weight 1"
    self_loop = loop if (normalize if loops is None else loops) else 0.0
    unread = replaced(*case.inputs["edge_index"]) if self_loop and "edge_weight" in case.inputs else ()
    if unread:
        note = "PyG gives a self-loop that a later one replaces a gradient, which is 0"
    graph = partial(gcn_weights, self_loop=self_loop, normalize=normalize)
    params = lambda p: named(p, dense="lin") | bias(p)  # noqa: E731
    return Layer(partial(GCNConv, bias=args["bias"]), params, graph, note, unread=unread)


def replaced(src: np.ndarray, dst: np.ndarray) -> tuple[int, ...]:
    """Self-loops of a node that has another one later."""
    loops = np.flatnonzero(src == dst)
    last = {int(src[edge]): int(edge) for edge in loops}
    return tuple(int(edge) for edge in loops if last[int(src[edge])] != edge)


def bias(p: Given) -> dict[str, jax.Array]:
    """The bias after heads are joined, where there is one."""
    return {"bias": p["bias"]} if "bias" in p else {}


def attention(case: Case, args: dict[str, Any]) -> dict[str, Any]:
    """The options that layers with attention share."""
    edge = EDGE if "edge_attr" in case.inputs else None
    return {"heads": args["heads"], "concat": args["concat"], "bias": args["bias"], "edge": edge}


def with_loops(case: Case, args: dict[str, Any]) -> tuple[dict[str, Any], Callable]:
    """Our own slot in place of loops, and the graph without its own ones."""
    if not args["add_self_loops"]:
        return {"own": False}, lambda graph: graph
    if "x_src" in case.inputs:
        raise Unsupported("a loop between two tables joins rows that have nothing but their number in common")
    if "edge_attr" in case.inputs and args["fill_value"] != "mean":
        raise Unsupported(f"an own slot has the mean of edge features, not {args['fill_value']!r}")
    return {"own": True}, remove_self_loops


def gat(case: Case, args: dict[str, Any]) -> Layer:
    """Graph attention."""
    options = attention(case, args)
    own, graph = with_loops(case, args)
    apart = "lin_dst.weight" in case.params

    def params(p: Given) -> dict[str, Any]:
        found = named(p, dense="lin", dst="lin_dst", edge="lin_edge", residual="res")
        found |= named(p, dense="lin_src")
        return found | bias(p) | {name: p[name][0] for name in p if name.startswith("att_")}

    more = {"negative_slope": args["negative_slope"], "residual": args["residual"], "share": not apart}
    return Layer(partial(GATConv, **options, **own, **more), params, graph)


def gatv2(case: Case, args: dict[str, Any]) -> Layer:
    """Attention that depends on both ends."""
    options = attention(case, args)
    own, graph = with_loops(case, args)

    def params(p: Given) -> dict[str, Any]:
        right = {} if args["share_weights"] else named(p, dst="lin_r")
        return named(p, src="lin_l", edge="lin_edge", residual="res") | right | bias(p) | {"att": p["att"][0]}

    more = {"negative_slope": args["negative_slope"], "residual": args["residual"]}
    conv = partial(GATv2Conv, **options, **own, share=args["share_weights"], **more)
    return Layer(conv, params, graph)


def transformer(case: Case, args: dict[str, Any]) -> Layer:
    """Queries and keys."""
    root = {"self": "lin_skip"} if args["root_weight"] else {}
    gate = args["beta"] and args["root_weight"]
    if gate:
        root["beta"] = "lin_beta"
    names = {"query": "lin_query", "key": "lin_key", "value": "lin_value", "edge": "lin_edge", **root}
    options = attention(case, args) | {"self_term": args["root_weight"], "beta": gate}
    return Layer(partial(TransformerConv, **options), lambda p: named(p, **names))


def gine(case: Case, args: dict[str, Any]) -> Layer:
    """Edge features added to rows."""
    if "nn.0.weight" not in case.params or "nn.2.weight" not in case.params or "nn.4.weight" in case.params:
        raise Unsupported("GINEConv has two dense layers with a ReLU between")
    if "edge_attr" in case.inputs and "lin.weight" not in case.params:
        raise Unsupported("GINEConv always has a dense layer for the edges' features")
    eps = float(case.params["eps"].ravel()[0])
    train = "param/eps" in case.grads or bool(args["train_eps"])

    def params(p: Given) -> dict[str, Any]:
        found = named(p, first="nn.0", second="nn.2", edge="lin")
        return found | ({"eps": p["eps"].reshape(())} if train else {})

    edge = EDGE if "edge_attr" in case.inputs else None
    hidden = case.params["nn.0.weight"].shape[0]
    return Layer(partial(GINEConv, edge=edge, hidden=hidden, eps=eps, train_eps=train), params)


PADDED = "PyG's LSTM runs on through padding: compared where every node reads such rows of zeros too"
PLAIN: dict[str, AggregateFn] = {
    "mean": aggregate.mean,
    "sum": aggregate.sum,
    "add": aggregate.sum,
    "max": aggregate.max,
    "min": aggregate.min,
    "var": aggregate.var,
    "std": aggregate.std,
}


def sage(case: Case, args: dict[str, Any]) -> Layer:
    """Hamilton's layer with any aggregator that both have."""
    aggr, in_order = args["aggr"], args["aggr"] == "lstm"
    if in_order and args["project"]:
        raise Unsupported("an LSTM of projected rows pads with rows that no node has")
    options = {"self_term": args["root_weight"], "project": args["project"], "normalize": args["normalize"]}
    conv = partial(SAGEConv, aggregate=aggregator(aggr, args["aggr_kwargs"] or {}), **options)
    with_bias = "lin_l.bias" in case.params

    def params(p: Given) -> dict[str, Any]:
        found = named(p, self="lin_r", project="lin") | {"neigh": {"kernel": p["lin_l.weight"].T}}
        found |= {"bias": p["lin_l.bias"]} if with_bias else {}
        if "aggr_module.t" in p:
            found["aggregate"] = {"t": p["aggr_module.t"].reshape(())}
        return found | ({"aggregate": {"cell": lstm_cell(p)}} if in_order else {})

    return Layer(partial(conv, bias=with_bias), params, note=PADDED if in_order else None, in_order=in_order)


def aggregator(aggr: Any, more: Mapping[str, Any]) -> AggregateFn:
    """PyG's aggregation of this name, or several."""
    if aggr == "softmax" and more.keys() <= {"learn", "t"} and more.get("t", 1.0) == 1.0:
        return Softmax(learn=bool(more.get("learn")))
    if more:
        raise Unsupported(f"no arguments {sorted(more)} of the aggregation {aggr!r} are known")
    if aggr == "lstm":
        return LSTM()
    if isinstance(aggr, list):
        if "lstm" in aggr:
            raise Unsupported("an LSTM beside other aggregators is not mapped")
        return Several(tuple(aggregator(one, {}) for one in aggr))
    if aggr not in PLAIN:
        raise Unsupported(f"there is no aggregator {aggr!r}")
    return PLAIN[aggr]


def lstm_cell(p: Given) -> dict[str, Any]:
    """The cell of an LSTM: PyTorch's gates stand in the order i, f, g, o, with two biases that are added."""
    parts = {name: jnp.split(p[f"aggr_module.lstm.{name}_l0"], 4) for name in ("weight_ih", "weight_hh")}
    shift = jnp.split(p["aggr_module.lstm.bias_ih_l0"] + p["aggr_module.lstm.bias_hh_l0"], 4)
    cell: dict[str, Any] = {}
    for k, gate in enumerate("ifgo"):
        cell[f"i{gate}"] = {"kernel": parts["weight_ih"][k].T}
        cell[f"h{gate}"] = {"kernel": parts["weight_hh"][k].T, "bias": shift[k]}
    return cell


def encoder(case: Case, args: dict[str, Any]) -> Layer:
    """An encoder of times."""
    make: Any = {
        "tgn.TimeEncoder": FourierTime,
        "TemporalEncoding": partial(FourierTime, learned=False),
        "PositionalEncoding": SinusoidalTime,
    }[case.kind]

    def params(p: Given) -> dict[str, Any]:
        return {"frequency": p["lin.weight"][:, 0], "phase": p["lin.bias"]} if p else {}

    return Layer(make, params)


def hetero(case: Case, args: dict[str, Any]) -> Layer:
    """A convolution a relation."""
    kind = re.findall(r"\w+", case.config["convs"])[0]  # the rest is prose
    if kind not in ("SAGEConv", "GATConv"):
        raise Unsupported(f"{case.config['convs']} in HeteroConv is not known")
    make, signature = LAYERS[kind]
    names = sorted({name.split(">.")[0] + ">." for name in case.params})
    options = signature | ({"heads": 2, "add_self_loops": False} if kind == "GATConv" else {})
    layers = {
        name[len("convs.<") : -2].replace("___", "__"): (
            name,
            make(case._replace(params=below(case.params, name), inputs={}), options),
        )
        for name in names
    }
    width = next(x.shape[0] for name, x in case.params.items() if name.endswith("bias"))

    def params(p: Given) -> dict[str, Any]:
        return {ours: layer.params(below(p, theirs)) for ours, (theirs, layer) in layers.items()}

    conv = partial(
        HeteroConv, lambda relation: partial(layers["__".join(relation)][1].conv, width), case.config["aggr"]
    )
    return Layer(conv, params)


def below(p: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The parameters whose names begin so, by what follows."""
    return {name.removeprefix(prefix): x for name, x in p.items() if name.startswith(prefix)}


WIDTHS: dict[str, Any] = {"in_channels": None, "out_channels": None}
HEADS = WIDTHS | {"heads": 1, "concat": True}
LOOPS = HEADS | {
    "negative_slope": 0.2,
    "dropout": 0.0,
    "add_self_loops": True,
    "edge_dim": None,
    "fill_value": "mean",
    "bias": True,
}
NORMALIZED = {"improved": False, "cached": False, "add_self_loops": None, "normalize": True, "bias": True}
ROOT = {"beta": False, "dropout": 0.0, "edge_dim": None, "bias": True, "root_weight": True}
SAGE = {"aggr": "mean", "normalize": False, "root_weight": True, "project": False, "bias": True}

LAYERS: dict[str, tuple[Callable[[Case, dict[str, Any]], Layer], dict[str, Any]]] = {
    "GCNConv": (gcn, WIDTHS | NORMALIZED),
    "GATConv": (gat, LOOPS | {"residual": False}),
    "GATv2Conv": (gatv2, LOOPS | {"share_weights": False, "residual": False}),
    "TransformerConv": (transformer, HEADS | ROOT),
    "GINEConv": (gine, {"nn": None, "eps": 0.0, "train_eps": False, "edge_dim": None}),
    "HeteroConv": (hetero, {}),
    "SAGEConv": (sage, WIDTHS | SAGE | {"aggr_kwargs": None}),
    "tgn.TimeEncoder": (encoder, {"out_channels": None}),
    "TemporalEncoding": (encoder, {"out_channels": None}),
    "PositionalEncoding": (encoder, {"out_channels": None}),
}
"""PyG's class -> its layer here, and its arguments in their order with their defaults"""

NOT_YET = {
    "RGCNConv": "no layer reads types of edges yet",
    "HGTConv": "no layer reads types of nodes and edges yet",
    "PNAConv": "there is no PNAConv: `Several` has its aggregators, not its scalers by degree",
    "ClusterGCNConv": "there is no layer of two matrices and a loop of its own weight",
}
