"""Convolutions with attention and with edge features in float64 NumPy, one node at a time, as in the papers.

They read a block's slots as lists and a flax parameter tree, and share no code with jsage.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import reference
from reference import dense, relu, sigmoid

Row = np.ndarray


class Reads(NamedTuple):
    """What one destination reads."""

    own: int
    src: list[int]
    slots: list[int]
    """Which slots the sources are in."""


def reads(block: Any) -> list[Reads]:
    """The valid slots of an `Indexed` block."""
    dst, src, mask = (np.asarray(x) for x in (block.dst, block.src, block.mask))
    slots = [np.flatnonzero(row).tolist() for row in mask]
    return [Reads(int(v), [int(src[i, k]) for k in slots[i]], slots[i]) for i, v in enumerate(dst)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the first axis; nothing of nothing."""
    part = np.exp(logits - logits.max(0, initial=-np.inf))
    return part / part.sum(0)


def heads(x: np.ndarray, count: int) -> np.ndarray:
    return x.reshape(*x.shape[:-1], count, -1)


def leaky(x: np.ndarray, slope: float) -> np.ndarray:
    return np.where(x > 0, x, slope * x)


def attend(logits: list[Row], values: list[Row], like: Row) -> tuple[Row, np.ndarray]:
    """`sum alpha value` a head, and alpha; zeros of nothing."""
    if not logits:
        return np.zeros_like(like), np.zeros((0, len(like)))
    alpha = softmax(np.stack(logits))
    return (alpha[..., None] * np.stack(values)).sum(0), alpha


def joined(out: Row, concat: bool) -> Row:
    return out.ravel() if concat else out.mean(0)


def gat(p: Mapping[str, Any], h: np.ndarray, read: Reads, edges: np.ndarray, o: Mapping[str, Any]):
    count, slope = o.get("heads", 1), o.get("negative_slope", 0.2)
    row, rows = h[read.own], [heads(h[u] @ p["dense"]["kernel"], count) for u in read.src]
    mine = heads(row @ p["dense"]["kernel"], count)
    met = mine if o.get("share", True) else heads(row @ p["dst"]["kernel"], count)

    def logit(value: Row, e: Row | None) -> Row:
        total = (met * p["att_dst"]).sum(-1) + (value * p["att_src"]).sum(-1)
        if e is not None:
            total = total + (heads(e @ p["edge"]["kernel"], count) * p["att_edge"]).sum(-1)
        return leaky(total, slope)

    return _with_own(logit, rows, mine, edges, o)


def gatv2(p: Mapping[str, Any], h: np.ndarray, read: Reads, edges: np.ndarray, o: Mapping[str, Any]):
    count, slope = o.get("heads", 1), o.get("negative_slope", 0.2)
    row, rows = h[read.own], [heads(dense(p["src"], h[u]), count) for u in read.src]
    met = heads(dense(p["src" if o.get("share") else "dst"], row), count)

    def logit(value: Row, e: Row | None) -> Row:
        total = met + value
        if e is not None:
            total = total + heads(e @ p["edge"]["kernel"], count)
        return (leaky(total, slope) * p["att"]).sum(-1)

    return _with_own(logit, rows, heads(dense(p["src"], row), count), edges, o)


def _with_own(logit, rows, mine, edges, o):
    edge = o.get("edge")
    data = [edges[k] if edge else None for k in range(len(rows))]
    logits, values = [logit(v, e) for v, e in zip(rows, data, strict=True)], list(rows)
    if o.get("own", True):
        mean = np.mean(edges, 0) if len(rows) else np.zeros(edges.shape[1])
        logits, values = [*logits, logit(mine, mean if edge else None)], [*values, mine]
    out, alpha = attend(logits, values, mine)
    return joined(out, o.get("concat", True)), alpha


def transformer(p: Mapping[str, Any], h: np.ndarray, read: Reads, edges: np.ndarray, o: Mapping[str, Any]):
    count, row = o.get("heads", 1), h[read.own]
    query = heads(dense(p["query"], row), count)
    logits, values = [], []
    for k, u in enumerate(read.src):
        key, value = (heads(dense(p[name], h[u]), count) for name in ("key", "value"))
        if o.get("edge"):
            more = heads(edges[k] @ p["edge"]["kernel"], count)
            key, value = key + more, value + more
        logits.append((query * key).sum(-1) / np.sqrt(query.shape[-1]))
        values.append(value)
    found, alpha = attend(logits, values, query)
    out = joined(found, o.get("concat", True))
    if not o.get("self_term", True):
        return out, alpha
    root = dense(p["self"], row)
    if not o.get("beta"):
        return out + root, alpha
    gate = sigmoid(np.concatenate([out, root, out - root]) @ p["beta"]["kernel"])
    return gate * root + (1 - gate) * out, alpha


def attention(kind, p: Mapping[str, Any], h: np.ndarray, block: Any, edges: np.ndarray, o: Mapping[str, Any]):
    """A layer's rows, and `[num_dst, fanout + own, heads]` weights, 0 in the padding, the own slot last."""
    out, fanout = [], block.mask.shape[1]
    own = o.get("own", True) and kind is not transformer
    weights = np.zeros((block.mask.shape[0], fanout + own, o.get("heads", 1)))
    for v, read in enumerate(reads(block)):
        row, alpha = kind(p, h, read, edges[v][read.slots], o)
        if "residual" in p:
            row = row + h[read.own] @ p["residual"]["kernel"]
        out.append(row + p.get("bias", 0.0))
        weights[v, read.slots + [fanout] * own] = alpha
    return np.stack(out), weights


def gcn(p: Mapping[str, Any], h: np.ndarray, block: Any, edges: np.ndarray, weight: Any, own_weight: Any):
    """The mean of weighted rows, and the own row by its weight, which is 1 where no edge says it."""
    out = []
    for v, read in enumerate(reads(block)):
        total = sum((float(weight[v][k]) * h[u] for u, k in zip(read.src, read.slots, strict=True)), 0 * h[0])
        own = float(own_weight[v]) if read.src else 1.0
        row = total / max(len(read.src), 1) + own * h[read.own]
        out.append(row @ p["dense"]["kernel"] + p["bias"])
    return np.stack(out)


def gine(p: Mapping[str, Any], h: np.ndarray, block: Any, edges: np.ndarray, o: Mapping[str, Any]):
    """`MLP((1 + eps) h_v + sum ReLU(h_u + W_e e + b_e))`."""
    out = []
    for v, read in enumerate(reads(block)):
        row = (1 + p.get("eps", o.get("eps", 0.0))) * h[read.own]
        for u, k in zip(read.src, read.slots, strict=True):
            row = row + relu(h[u] + (dense(p["edge"], edges[v][k]) if o.get("edge") else 0))
        out.append(dense(p["second"], relu(dense(p["first"], row))))
    return np.stack(out)


def sage_with_edges(p: Mapping[str, Any], h: np.ndarray, block: Any, edges: np.ndarray, name: str):
    """Algorithm 1 over rows `[h_u ; e_uv]`."""
    zeros, out = np.zeros(edges.shape[-1]), []
    for v, read in enumerate(reads(block)):
        rows = [np.concatenate([h[u], edges[v][k]]) for u, k in zip(read.src, read.slots, strict=True)]
        table = np.stack([np.concatenate([h[read.own], zeros]), *rows])
        near = list(range(1, len(table)))
        row = reference.aggregate(name, p.get("aggregate"), table, 0, near, [1.0] * len(near))
        kernel = p["neigh"]["kernel"]
        if "edge" in p:
            kernel = np.concatenate([kernel, p["edge"]["kernel"]])
        row = row @ kernel + p["bias"]
        out.append(row + h[read.own] @ p["self"]["kernel"] if "self" in p else row)
    return np.stack(out)
