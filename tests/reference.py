"""GraphSAGE in float64 NumPy, one node at a time: Algorithm 1 of Hamilton et al. (2017), and its options.

It reads plain neighbor lists and a flax parameter tree, and shares no code with jsage. Which parts a
layer has (self term, bias, projection, skips) is read off the parameters that are there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Tree = Mapping[str, Any]
Row = np.ndarray


class Hop(NamedTuple):
    """What each destination reads: the position of its own row, and of its neighbors', with weights."""

    own: list[int]
    neighbors: list[list[int]]
    weights: list[list[float]]


def slots(own: Sequence[int], src: Any, mask: Any, weight: Any = None) -> Hop:
    """Neighbor lists from a table of slots."""
    src, mask = np.asarray(src), np.asarray(mask)
    weight = np.ones(mask.shape) if weight is None else np.asarray(weight, np.float64)
    valid = [np.flatnonzero(row) for row in mask]
    return Hop(
        [int(v) for v in own],
        [[int(src[v, i]) for i in valid[v]] for v in range(len(valid))],
        [[float(weight[v, i]) for i in valid[v]] for v in range(len(valid))],
    )


def tree(mask: Any, weight: Any = None) -> Hop:
    """Neighbor lists of a hop whose rows are its destinations followed by every slot."""
    mask = np.asarray(mask)
    return slots(range(len(mask)), len(mask) + np.arange(mask.size).reshape(mask.shape), mask, weight)


def edges(src: Any, dst: Any, num_nodes: int, weight: Any = None) -> Hop:
    """Neighbor lists of a whole graph, each in the order of the edges."""
    weight = np.ones(len(src)) if weight is None else np.asarray(weight, np.float64)
    into = [[e for e in range(len(dst)) if dst[e] == v] for v in range(num_nodes)]
    return Hop(
        list(range(num_nodes)),
        [[int(src[e]) for e in mine] for mine in into],
        [[float(weight[e]) for e in mine] for mine in into],
    )


def reached(hops: Sequence[Hop], seeds: Sequence[bool]) -> list[list[bool]]:
    """For each hop, which of its destinations the valid seeds reach: the others are padding."""
    valid = [list(seeds)]
    for hop, below in zip(hops[:0:-1], hops[-2::-1], strict=True):
        read: set[int] = set()
        for v in np.flatnonzero(valid[0]):
            read |= {hop.own[v], *hop.neighbors[v]}
        valid.insert(0, [position in read for position in range(len(below.own))])
    return valid


def dense(params: Tree, x: Row) -> Row:
    return x @ params["kernel"] + params.get("bias", 0.0)


def relu(x: Row) -> Row:
    return np.maximum(x, 0.0)


def sigmoid(x: Row) -> Row:
    return 1.0 / (1.0 + np.exp(-x))


def lstm(params: Tree, rows: Sequence[Row]) -> Row:
    """The last hidden state: `c' = f c + i g`, `h' = o tanh(c')`."""
    hidden = cell = np.zeros(params["hi"]["bias"].shape)
    for x in rows:
        i, f, g, o = (
            x @ params[f"i{gate}"]["kernel"] + dense(params[f"h{gate}"], hidden)
            for gate in ("i", "f", "g", "o")
        )
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
    return hidden


def aggregate(name: str, params: Tree | None, h: np.ndarray, own: int, near: list[int], weights: list[float]):
    """One destination's pooled row."""
    rows = [h[u] for u in near]
    if name in ("max pool", "mean pool"):
        rows = [relu(dense(params["dense"], row)) for row in rows]
        zero = np.zeros(params["dense"]["bias"].shape)
    else:
        zero = np.zeros(h.shape[1])
    messages = [w * row for w, row in zip(weights, rows, strict=True)]
    if name == "lstm":
        return lstm(params["cell"], messages)
    if name == "gcn":
        return sum(messages, h[own]) / (1 + len(near))
    if name == "several":
        parts = (aggregate(one, None, h, own, near, weights) for one in ("mean", "max", "std"))
        return np.concatenate(list(parts))
    if not near:
        return zero
    if name == "min":
        return np.min(messages, axis=0)
    if name in ("var", "std"):
        found = np.var(messages, axis=0)
        return found if name == "var" else np.sqrt(np.where(found > 1e-5, found, 0))
    if name == "softmax":
        part = np.exp(params["t"] * (np.stack(messages) - np.max(messages, axis=0)))
        return (part * messages).sum(0) / part.sum(0)
    if name in ("max", "max pool"):
        return np.max(messages, axis=0)
    return sum(messages, zero) / (1 if name == "sum" else len(near))


def convolve(
    params: Tree, h: np.ndarray, hop: Hop, name: str, *, concat: bool = False, normalize: bool = False
) -> np.ndarray:
    """Lines 4 and 5 of Algorithm 1, and 7 with `normalize`, for each destination."""
    read = np.stack([relu(dense(params["project"], row)) for row in h]) if "project" in params else h
    out = []
    for own, near, weights in zip(*hop, strict=True):
        row = aggregate(name, params.get("aggregate"), read, own, near, weights) @ params["neigh"]["kernel"]
        if "self" in params:
            mine = h[own] @ params["self"]["kernel"]
            row = np.concatenate([mine, row]) if concat else mine + row
        row = row + params.get("bias", 0.0)
        length = np.sqrt(np.sum(row * row))
        out.append(row / length if normalize and length > 0 else row)
    return np.stack(out)


def layer_norm(params: Tree, h: np.ndarray) -> np.ndarray:
    out = [(row - row.mean()) / np.sqrt(row.var() + 1e-6) for row in h]
    return np.stack(out) * params["scale"] + params["bias"]


def batch_norm(params: Tree, h: np.ndarray, mean: Row, var: Row) -> np.ndarray:
    return np.stack([(row - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"] for row in h])


def graphsage(
    variables: Tree,
    h: np.ndarray | None,
    hops: Sequence[Hop],
    name: str,
    *,
    norm: str | None = None,
    residual: bool = False,
    jump: str | None = None,
    seeds: Sequence[bool] | None = None,
    **conv: bool,
) -> np.ndarray:
    """The whole model; batch norm takes its own batch's valid rows where `seeds` says which those are."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    if "embed" in params:
        table = params["embed"]["embedding"]
        h = table if h is None else np.concatenate([h, table], axis=1)
    valid = None if seeds is None else reached(hops, seeds)
    kept: list[np.ndarray] = []
    for k, hop in enumerate(hops):
        out = convolve(params[f"convs_{k}"], h, hop, name, **conv)
        if jump or k < len(hops) - 1:
            if norm == "layer":
                out = layer_norm(params[f"norms_{k}"], out)
            if norm == "batch":
                running = stats[f"norms_{k}"]
                mean, var = moments(out, valid[k]) if valid else (running["mean"], running["var"])
                out = batch_norm(params[f"norms_{k}"], out, mean, var)
            out = relu(out)
            if residual:
                own = h[hop.own]
                out = out + (
                    own if own.shape[1] == out.shape[1] else dense(params[f"skips_{k}"]["dense"], own)
                )
        h = out
        kept = [*(rows[hop.own] for rows in kept), h]
    if jump:
        return dense(params["head"], np.concatenate(kept, 1) if jump == "concat" else np.max(kept, axis=0))
    return h


def moments(h: np.ndarray, valid: Sequence[bool]) -> tuple[Row, Row]:
    """Mean and biased variance over the valid rows."""
    rows = np.stack([row for row, here in zip(h, valid, strict=True) if here])
    return rows.mean(0), rows.var(0)


def float64(tree: Any) -> Any:
    """The same tree with float64 leaves."""
    if isinstance(tree, Mapping):
        return {name: float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)


def leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """Every leaf with its path."""
    if isinstance(tree, Mapping):
        return [leaf for name in sorted(tree) for leaf in leaves(tree[name], (*path, name))]
    return [(path, tree)]


def moved(tree: Any, path: tuple[str, ...], step: np.ndarray) -> Any:
    """The tree with one leaf moved by a step."""
    if not path:
        return tree + step
    return {**tree, path[0]: moved(tree[path[0]], path[1:], step)}


def check_gradients(f: Callable[[Any], np.ndarray], cotangent: np.ndarray, at: Any, grads: Any) -> None:
    """`grads` are those of `sum(f * cotangent)` to 1e-4, by differences along a random way in each leaf."""
    random, at, grads, step = np.random.default_rng(0), float64(at), float64(grads), 1e-6
    assert [path for path, _ in leaves(at)] == [path for path, _ in leaves(grads)]
    for (path, value), (_, grad) in zip(leaves(at), leaves(grads), strict=True):
        way = random.normal(size=value.shape)
        change = f(moved(at, path, step * way)) - f(moved(at, path, -step * way))
        slope = np.sum(change * cotangent) / (2 * step)
        np.testing.assert_allclose(np.sum(grad * way), slope, rtol=1e-4, atol=1e-4, err_msg="/".join(path))


def filled(shapes: Any, seed: int = 0) -> Any:
    """Random float32 values in the shapes of a flax tree: no bias at zero, no kink at the origin."""
    random = np.random.default_rng(seed)

    def fill(path: tuple[str, ...], leaf: Any) -> np.ndarray:
        values = random.normal(size=leaf.shape).astype(np.float32)
        return np.abs(values) + np.float32(0.5) if path[-1] == "var" else values

    out: dict[str, Any] = {}
    for path, leaf in leaves(shapes):
        place = out
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = fill(path, leaf)
    return out
