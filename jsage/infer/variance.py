"""What sampling costs and what it saves: embeddings from sampled against whole neighborhoods, by fanout."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jsage.graph.adjacency import Adjacency
from jsage.infer.apply_exact import apply_exact
from jsage.sampling import batches, exact_blocks, measure_hop_sizes, sample_blocks_by_node
from jsage.typing import HostArray, LayeredModel, PRNGKey

BATCH, REPEATS = 256, 5


class Spread(NamedTuple):
    """One line of the report: how far sampling with these fanouts is from whole neighborhoods."""

    fanouts: tuple[int, ...] | None
    """None: whole neighborhoods."""
    deviation: float
    """Root mean square of `|z - z_whole|` over nodes and draws, over that of `|z_whole|`."""
    changed: float
    """Share of predictions, the largest of a node's outputs (the sign of a single one), that differ."""
    rows: float
    """Feature rows read a node."""
    seconds: float
    """Seconds a node, in batches, compiled: the least of all batches and draws."""


def variance_report(
    model: Any,
    params: PyTree,
    graph: Adjacency,
    features: Float[Array, "num_nodes d"],
    nodes: Int[HostArray, " num_seeds"],
    fanouts: Sequence[Sequence[int]],
) -> list[Spread]:
    """Compare each of `fanouts` with whole neighborhoods on `nodes`: a table to choose fanouts by.

    Five draws each. The last line is whole neighborhoods themselves. A thousand validation nodes are
    plenty; on CPUs the times are those of this machine.

    >>> from jsage import GraphSAGE
    >>> from jsage.data import digits
    >>> graph, features, *_, test, _ = digits()
    >>> model = GraphSAGE(hidden=4, out=10)
    >>> blocks = sample_blocks_by_node(jax.random.key(0), graph, test[:2], (2, 2))
    >>> params = model.init(jax.random.key(0), features, blocks)
    >>> report = variance_report(model, params, graph, features, test[:50], [(2, 2), (100, 100)])
    >>> report[0].deviation > 0.01 > 0.0001 > report[1].deviation, report[2].fanouts
    (True, None)
    """
    for hops in fanouts:
        if len(hops) != model.num_layers:
            raise ValueError(f"{model.num_layers} layers need as many fanouts, got {tuple(hops)}")
    seeds, mask = batches(nodes, min(BATCH, len(nodes)))
    exact, cost, seconds = _exactly(model, params, graph, features, seeds)
    report = [
        _compare(
            tuple(hops), partial(_sampled, model, tuple(hops), params, (graph, features)), seeds, mask, exact
        )
        for hops in fanouts
    ]
    count = float(mask.sum())
    return [*report, Spread(None, 0.0, 0.0, float(cost[np.asarray(mask)].sum()) / count, seconds)]


def plot_variance(report: Sequence[Spread], path: str | Path) -> None:
    """Draw a report as a picture: deviation and changed predictions over the rows read (needs matplotlib).

    >>> import tempfile
    >>> report = [Spread((5, 5), 0.2, 0.1, 30.0, 1e-5), Spread(None, 0.0, 0.0, 90.0, 1e-4)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot_variance(report, f"{folder}/variance.png")
    """
    from matplotlib.figure import Figure

    lines = sorted(report, key=lambda line: line.rows)
    if not {True, False} <= {line.fanouts is None for line in lines}:
        raise ValueError(
            "a report has lines of fanouts and one of whole neighborhoods: pass variance_report's"
        )
    figure = Figure(figsize=(10, 4), layout="constrained")
    names = ["all" if line.fanouts is None else ",".join(map(str, line.fanouts)) for line in lines]
    titles = "deviation / size of the embedding", "share of predictions changed"
    for axes, field, title in zip(figure.subplots(1, 2), ("deviation", "changed"), titles, strict=True):
        values = [getattr(line, field) for line in lines]
        drawn = [(line.rows, value) for line, value in zip(lines, values, strict=True) if line.fanouts]
        axes.plot(*zip(*drawn, strict=True), "o-", color="C0", label="sampled")
        whole = [(line.rows, value) for line, value in zip(lines, values, strict=True) if not line.fanouts]
        axes.plot(*zip(*whole, strict=True), "s", color="C3", label="whole neighborhoods")
        axes.legend(loc="upper right")
        for name, line, value in zip(names, lines, values, strict=True):
            text = f"{name}\n{1e6 * line.seconds:,.0f} µs"
            axes.annotate(text, (line.rows, value), (5, 5), textcoords="offset points", fontsize=8)
        axes.set(xscale="log", xlabel="feature rows read a node", ylabel=title)
        axes.set_ylim(bottom=0, top=1.15 * max([*values, 1e-9]))
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _exactly(model: Any, params: PyTree, graph: Adjacency, features: Array, seeds: Array):
    """Outputs from whole neighborhoods, the rows that each batch's seeds read, and seconds a seed."""
    outputs, costs, seconds = [], [], []
    for batch in seeds:
        rooms = measure_hop_sizes(graph, batch, model.num_layers)
        call = partial(_whole, model, rooms, params, (graph, features), batch)
        out, taken = jax.block_until_ready(call())
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append((time.perf_counter() - began) / len(batch))
        outputs.append(np.asarray(out))
        nodes = taken[-2, 1] if len(taken) > 1 else len(batch)
        costs.append(np.full(len(batch), float(taken[-1, 0] + nodes) / len(batch)))
    return np.stack(outputs), np.stack(costs), min(seconds)


def _compare(fanouts: tuple[int, ...], call: Any, seeds: Array, mask: Array, exact: np.ndarray) -> Spread:
    error = changed = rows = 0.0
    seconds = []
    valid = np.asarray(mask)
    jax.block_until_ready(call(jax.random.key(0), seeds[0]))
    for key in jax.random.split(jax.random.key(1), REPEATS):
        for batch, real, truth in zip(seeds, valid, exact, strict=True):
            began = time.perf_counter()
            out, read = jax.block_until_ready(call(key, batch))
            seconds.append((time.perf_counter() - began) / len(batch))
            out = np.asarray(out)
            error += np.square(out - truth)[real].sum(dtype=np.float64)
            changed += (_choice(out) != _choice(truth))[real].sum()
            rows += np.asarray(read)[real].sum()
    count = valid.sum() * REPEATS
    scale = np.square(exact)[valid].sum(dtype=np.float64) * REPEATS
    deviation = float(np.sqrt(error / max(scale, 1e-30)))
    return Spread(fanouts, deviation, float(changed / count), float(rows / count), min(seconds))


def _choice(outputs: np.ndarray) -> np.ndarray:
    return outputs.argmax(1) if outputs.shape[1] > 1 else outputs[:, 0] > 0


@partial(jax.jit, static_argnums=(0, 1))
def _sampled(model, fanouts, params, tables, key: PRNGKey, seeds):
    """Outputs, and how many rows each seed's tree reads."""
    graph, features = tables
    blocks: Any = sample_blocks_by_node(key, graph, seeds, fanouts)
    first, *rest = blocks
    rows = 1 + first.mask.sum(1)  # of each node met, then of each seed's
    valid = [jnp.ones(len(seeds), bool)]
    for k in range(len(rest) - 1, -1, -1):
        valid.insert(0, rest[k].read(valid[0], blocks[k].num_dst))
    rows = jnp.where(valid[0], rows, 0)
    for tree in rest:
        own, slots = jnp.split(rows, [tree.num_dst])
        rows = own + slots.reshape(tree.mask.shape).sum(1)
    return model.apply(params, features, blocks), rows


@partial(jax.jit, static_argnums=(0, 1))
def _whole(model, rooms, params, tables, seeds):
    graph, features = tables
    blocks, taken = exact_blocks(graph, seeds, rooms)
    if isinstance(model, LayeredModel):
        return apply_exact(model, params, features, blocks), taken
    return model.apply(params, features, blocks), taken
