"""`--conv auto`: the model that validates best in a small grid of convolutions, depths and preprocessing."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.common.config import AUTO, DRAWS, Config
from experiments.common.datasets import kept, prepare
from experiments.common.learners import check_draw, mlp, sage, weigh
from experiments.common.runs import Results, task_of, train_all
from experiments.common.smoothing import linear_smoothing
from experiments.common.subgraphs import Plan, on_subgraphs
from jsage.data import Dataset
from jsage.graph import Graph
from jsage.recipes.loop import Run
from jsage.recipes.tasks import Task, called

NETWORK, FEATURES, LINEAR = "GraphSAGE", "MLP (features only)", "linear on smoothed features"
"""The kinds of models, as tables name them: the first is one of any convolution."""


class Problem(NamedTuple):
    """A data set with its features scaled, and what is predicted."""

    task: Task
    dataset: Dataset
    training_graph: Graph
    about: Mapping[str, Any]
    """How features are scaled, for run.json."""


class Candidate(NamedTuple):
    """A model of the grid: its kind, and the options that it has instead of those given."""

    kind: str
    options: Mapping[str, Any]

    def __str__(self) -> str:
        told = [f"{name.replace('_', ' ')} {value}" for name, value in self.options.items()]
        return ", ".join([self.kind, *told])


class Choice(NamedTuple):
    """What validation chose: the model, its options in full, and the score of every candidate's every run."""

    best: Candidate
    config: Config
    validated: list[tuple[Candidate, list[float]]]
    plain: Config
    """The options given, for what stands beside."""

    def to_json(self) -> dict[str, Any]:
        """What `--json` writes of it."""
        rows = [
            {"kind": c.kind, "options": dict(c.options), "val": scores, "val_mean": float(np.mean(scores))}
            for c, scores in self.validated
        ]
        best = {"kind": self.best.kind, "options": dict(self.best.options)}
        return {"chosen": best, "candidates": rows}


def _networks(grid: Mapping[str, Sequence[Any]]) -> list[Candidate]:
    """One of any convolution for each combination of these options."""
    return [Candidate(NETWORK, dict(zip(grid, values, strict=True))) for values in product(*grid.values())]


GRID = (
    *_networks({"conv": ["gcn"], "layers": [2, 3], "scale": ["sums"], "weight_decay": [0.001]}),
    *_networks({"conv": ["gat"], "layers": [2], "scale": ["sums"], "weight_decay": [0.001]}),
    *_networks({"conv": ["sage"], "layers": [2], "aggregator": ["gcn", "mean"]}),
    Candidate(FEATURES, {}),
    *(Candidate(LINEAR, {"layers": hops}) for hops in (1, 2, 3)),
)
"""What `--conv auto` tries; what a candidate does not say is as given. docs/experiments.md has the list."""


def make_problem(dataset: Dataset, config: Config) -> Problem:
    """The data set as these options prepare it."""
    scaled, training_graph, scaling = prepare(dataset, config)
    check_draw(scaled.graph, config)
    return Problem(task_of(scaled, config), scaled, training_graph, kept(scaling))


def train(kind: str, problem: Problem, config: Config) -> Results | None:
    """Runs of a model of this kind; None of a linear one where scikit-learn is not installed."""
    task, dataset, plain, about = problem
    if kind == LINEAR:
        return _linear(problem, config)
    if kind == FEATURES:
        learner = mlp(config, task.width)._replace(about=about)
        return train_all("MLP", learner, task, dataset, plain, config)
    weighed, graph = weigh(dataset, plain, config)
    draw, identity = DRAWS[config.draw], dataset.features is None
    learner = sage(config, task.width, dataset.graph.num_nodes, identity=identity, draw=draw)
    unweighed = None if graph is plain else plain
    learner = on_subgraphs(learner, Plan(config, task.width, identity, unweighed))
    return train_all(NETWORK, learner._replace(about=about), task, weighed, graph, config)


def _linear(problem: Problem, config: Config) -> Results | None:
    """Every run of it is the same: it draws nothing, and it has no epochs, told as one."""
    task, dataset, graph, _ = problem
    found = linear_smoothing(task, dataset, graph, config.layers)
    if found is None:
        return None
    row = {"epoch": 1, "loss": float("nan"), "seconds": 0.0, f"val_{task.metric}": found.validated}
    runs = [Run({}, {}, row, [row])] * config.runs
    outputs = called(task, found.outputs, found.threshold)
    thresholds = [float(found.threshold)] * config.runs
    return Results(runs, [found.scores] * config.runs, outputs, Counter(), thresholds)


def choose(dataset: Dataset, config: Config) -> Choice:
    """Train every candidate `config.tries` times, and choose by the mean score on the validation nodes.

    Test nodes have no part in it. The first of equally good ones is chosen.
    """
    validated = []
    config = with_scale(dataset, config)
    for candidate in candidates(dataset):
        given = with_options(config, candidate)
        given = dataclasses.replace(given, runs=config.tries, out=None, resume=False)
        problem = make_problem(dataset, given)
        found = train(candidate.kind, problem, given)
        if found is not None:
            scores = [float(run.best[f"val_{problem.task.metric}"]) for run in found.runs]
            validated.append((candidate, scores))
    best = max(validated, key=lambda pair: np.mean(pair[1]))[0]
    return Choice(best, with_options(config, best), validated, with_options(config, Candidate(FEATURES, {})))


def candidates(dataset: Dataset) -> list[Candidate]:
    """The grid; without features there is nothing to scale, to smooth, or to learn from without the graph."""
    if dataset.features is not None:
        return list(GRID)
    found = {}
    for kind, options in GRID:
        options = {name: value for name, value in options.items() if name != "scale"}
        if kind == NETWORK:
            found.setdefault(str(options), Candidate(kind, options))
    return list(found.values())


def with_scale(dataset: Dataset, config: Config) -> Config:
    """The options with the scaling that `auto` stands for, which is printed once."""
    scaling = prepare(dataset, config)[2]
    return config if scaling is None else dataclasses.replace(config, scale=scaling.kind)


def with_options(config: Config, candidate: Candidate) -> Config:
    """The options given, but for the candidate's."""
    options = dict(candidate.options)
    layers = options.get("layers", config.layers)
    fanouts = config.fanouts[:layers] + config.fanouts[-1:] * (layers - len(config.fanouts))
    conv = options.pop("conv", Config.conv if config.conv == AUTO else config.conv)
    return dataclasses.replace(config, conv=conv, **options, fanouts=fanouts)


def print_choice(choice: Choice, metric: str) -> None:
    """Every candidate's validation score, and which was chosen."""
    table = Table("model", f"validation {metric}", "", title="--conv auto")
    for candidate, scores in choice.validated:
        spread = f" ± {np.std(scores):.4f}" if len(scores) > 1 else ""
        mark = "chosen" if candidate is choice.best else ""
        table.add_row(str(candidate), f"{np.mean(scores):.4f}{spread}", mark)
    Console(width=None if Console().is_terminal else 120).print(table)
