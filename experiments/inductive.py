"""Train GraphSAGE without the test nodes, then let them come as new nodes, embed and score them.

    python -m experiments.inductive                          # digits: about 20 s
    python -m experiments.inductive --dataset twitch6.npz    # train on one graph, meet four others

The options are those of `experiments.classify`. The test nodes are in no table while the model is trained:
neither their features nor their edges. Their outputs by `embed_new` are scored (`test_mean` in the JSON)
beside those on the graph rebuilt with them (`rebuilt_mean`), whole neighborhoods both: the scores agree.
"""

import dataclasses
import sys
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common.config import DRAWS, Config, parse
from experiments.common.datasets import kept, prepare, read
from experiments.common.learners import check_draw, mlp, sage, sage_model
from experiments.common.options import command
from experiments.common.runs import task_of, train_all
from experiments.common.subgraphs import Plan, on_subgraphs
from jsage import data
from jsage.blocks import sliced_full_block
from jsage.data import Dataset
from jsage.graph import Graph, edges, induced_subgraph
from jsage.graph.overlay import NewNodes
from jsage.infer import embed_new
from jsage.nn import GraphSAGE
from jsage.recipes.report import baseline, summarize

SINGLES = 200
"""New nodes that are timed one by one."""


class Split(NamedTuple):
    """A data set cut in two: the known nodes, and those that come later."""

    graph: Graph
    features: jax.Array
    new: NewNodes


def main(config: Config) -> dict:
    """Train `config.runs` models; score the new nodes both ways; return what `--json` writes."""
    config = dataclasses.replace(config, features="dense")  # new nodes' rows are cut out of the table
    dataset, _, scaling = prepare(read(config), config)
    if dataset.features is None or config.aggregator == "lstm":
        raise ValueError(
            "inductive reads features and whole neighborhoods: it needs a data set with features, and an "
            "aggregator other than lstm"
        )
    task = task_of(dataset, config)
    hidden = data.inductive(dataset)
    model, split = sage_model(config, task.width), cut(dataset)
    check_draw(dataset.graph, config)
    draw = DRAWS[config.draw]
    learner = sage(config, task.width, dataset.graph.num_nodes, identity=False, draw=draw)
    learner = on_subgraphs(learner, Plan(config, task.width, identity=False, plain=None))
    learner = learner._replace(about=kept(scaling))
    found = train_all("GraphSAGE", learner, task, dataset, hidden, config)
    plain = train_all("MLP", mlp(config, task.width), task, dataset, hidden, config)
    test, val = np.asarray(dataset.test), np.asarray(dataset.val)
    embedded, rebuilt, times, apart, variables = [], [], [], 0.0, {}
    for run in found.runs:
        variables = {"params": run.params, **run.stats}
        threshold = task.threshold(exactly(model, variables, hidden, dataset)[val], val)
        whole = exactly(model, variables, dataset.graph, dataset)[test]
        outputs, seconds = timed(model, variables, split)
        rebuilt.append(task.scores(whole, test, threshold))
        embedded.append(task.scores(outputs, test, threshold))
        times.append(seconds)
        apart = max(apart, float(np.abs(outputs - whole).max() / np.abs(whole).max()))
    name, guess = baseline(task, np.asarray(dataset.train), test)
    scores = {"GraphSAGE": embedded, "MLP (features only)": plain.scores, name: [guess]}
    result = summarize(config, task.metric, scores, found.runs, found.traces["epoch"])
    result["rebuilt_mean"] = float(np.mean([score[task.metric] for score in rebuilt]))
    result |= {"largest_difference": apart, "new_nodes": len(test), "new_edges": len(split.new.src)}
    result["seconds_per_new_node"] = float(np.median(times))
    result |= one_by_one(model, variables, split)
    show(result)
    return result


def cut(dataset: Dataset) -> Split:
    """The graph of the known nodes alone, and the test nodes with all their edges as new ones."""
    nodes, test = dataset.graph.num_nodes, np.asarray(dataset.test)
    known = np.setdiff1d(np.arange(nodes), test)
    place = np.empty(nodes, np.int64)
    place[np.concatenate([known, test])] = np.arange(nodes)
    src, dst = (place[np.asarray(ends)] for ends in edges(dataset.graph))
    beside = np.maximum(src, dst) >= len(known)
    values = {name: np.asarray(rows)[beside] for name, rows in dataset.graph.edge_data.items()}
    features = np.asarray(dataset.features)
    src, dst = (np.where(ends < len(known), ends, len(known) - 1 - ends)[beside] for ends in (src, dst))
    new = NewNodes(features[test], src, dst, values)
    return Split(induced_subgraph(dataset.graph, known), jnp.asarray(features[known]), new)


def exactly(model: GraphSAGE, variables: Any, graph: Graph, dataset: Dataset) -> np.ndarray:
    """All nodes' outputs from whole neighborhoods of an ordinary graph."""
    blocks = (sliced_full_block(graph),) * model.num_layers
    return np.asarray(jax.jit(model.apply)(variables, jnp.asarray(dataset.features), blocks))


def timed(model: GraphSAGE, variables: Any, split: Split) -> tuple[np.ndarray, float]:
    """The new nodes' outputs, all in one request, and seconds a node once it is compiled."""
    outputs = embed_new(model, variables, split.graph, split.features, split.new)
    began = time.perf_counter()
    embed_new(model, variables, split.graph, split.features, split.new)
    return outputs, (time.perf_counter() - began) / len(outputs)


def one_by_one(model: GraphSAGE, variables: Any, split: Split) -> dict[str, float]:
    """Median and 99th percentile of the seconds of requests of one node with its edges to known ones."""
    features, src, dst, values, _ = split.new
    src, dst = np.asarray(src), np.asarray(dst)
    requests = []
    for node in range(min(SINGLES, len(features))):
        mine = (src == -1 - node) & (dst >= 0) | (dst == -1 - node) & (src >= 0)
        ends = (np.maximum(end[mine], -1) for end in (src, dst))
        rows = {name: value[mine] for name, value in values.items()}
        requests.append(NewNodes(features[node : node + 1], next(ends), next(ends), rows))
    largest = max(1, *(len(request.src) for request in requests))
    seconds = []
    for turn in range(2):
        for request in requests[: None if turn else 1]:  # the first compiles
            began = time.perf_counter()
            request = request._replace(capacity=(1, largest))
            embed_new(model, variables, split.graph, split.features, request)
            seconds.append(time.perf_counter() - began)
    p50, p99 = np.percentile(seconds[1:], (50, 99))
    return {"seconds_one_node_p50": float(p50), "seconds_one_node_p99": float(p99)}


def show(result: dict) -> None:
    """The scores and times on the terminal."""
    metric = result["metric"]
    table = Table("model", metric, title=f"{result['new_nodes']:,} new nodes, {result['new_edges']:,} edges")
    table.add_row("GraphSAGE, embed_new", f"{result['test_mean']:.4f}")
    table.add_row("GraphSAGE, graph rebuilt", f"{result['rebuilt_mean']:.4f}")
    for name, score in list(result["baselines"].items())[1:]:
        table.add_row(name, f"{score:.4f}")
    console = Console()
    console.print(table)
    console.print(
        f"a new node: {1e3 * result['seconds_per_new_node']:.2f} ms among all, "
        f"{1e3 * result['seconds_one_node_p50']:.2f} ms alone"
    )


def run(arguments: list[str] | None = None) -> int:
    """The command: 0, or 2 and one line on standard error for bad input."""
    return command(main, partial(parse, arguments, "inductive", __doc__))


if __name__ == "__main__":
    sys.exit(run())
