"""Scores of several models and runs: the JSON of an experiment, and tables on the terminal."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table

from jsage import metrics
from jsage.data import Dataset
from jsage.recipes.loop import Run
from jsage.recipes.options import RunOptions
from jsage.recipes.tasks import Task

Scores = dict[str, list[dict[str, float]]]
"""model -> one dict of scores a run; the first model is the one that an experiment is about"""


def summarize(
    options: RunOptions, metric: str, scores: Scores, runs: list[Run], traces: int
) -> dict[str, Any]:
    """The JSON of an experiment: the test scores of the first model, whose `runs` they are, and all means.

    >>> row = {"epoch": 1, "seconds": 0.5, "val_auc": 0.75}
    >>> scores = {"GraphSAGE": [{"auc": 0.5}], "guess": [{"auc": 0.25}]}
    >>> found = summarize(RunOptions("digits"), "auc", scores, [Run({}, {}, row, [row])], traces=1)
    >>> found["test_mean"], found["val_mean"], found["baselines"]["guess"]
    (0.5, 0.75, 0.25)
    """
    test = [score[metric] for score in next(iter(scores.values()))]
    return {
        "dataset": options.dataset,
        "metric": metric,
        "test_mean": float(np.mean(test)),
        "test_std": float(np.std(test)),
        "val_mean": float(np.mean([run.best[f"val_{metric}"] for run in runs])),
        "runs": options.runs,
        "epochs": [len(run.history) for run in runs],
        "seconds_per_epoch": float(np.median([run.seconds_per_epoch for run in runs])),
        "traces": traces,
        "baselines": {
            name: float(np.mean([score[metric] for score in rows])) for name, rows in scores.items()
        },
        "config": dataclasses.asdict(options),
    }


def summarize_all(
    options: RunOptions, metric: str, scores: Scores, runs: list[Run], traces: int
) -> dict[str, Any]:
    """The JSON of an experiment whose models have several metrics: the means of all of them in `scores`.

    >>> row = {"epoch": 1, "seconds": 0.5, "val_auc": 0.75}
    >>> scores = {"GraphSAGE": [{"auc": 0.5, "ap": 0.25}], "guess": [{"auc": 0.25, "ap": 0.125}]}
    >>> found = summarize_all(RunOptions("digits"), "auc", scores, [Run({}, {}, row, [row])], traces=1)
    >>> found["scores"]["guess"], found["baselines"]
    ({'auc': 0.25, 'ap': 0.125}, {'guess': 0.25})
    """
    mean = {
        name: {kind: float(np.mean([row[kind] for row in rows])) for kind in rows[0]}
        for name, rows in scores.items()
    }
    result = summarize(options, metric, scores, runs, traces)
    del result["baselines"][next(iter(scores))]
    return result | {"scores": mean}


def baseline(
    task: Task, train: Int[np.ndarray, " train"], test: Int[np.ndarray, " test"]
) -> tuple[str, dict[str, float]]:
    """The guess that reads no features: the commonest class, the commonest labels, the mean.

    >>> from jsage.data import digits
    >>> from jsage.recipes.tasks import make_task
    >>> data = digits()
    >>> name, scores = baseline(make_task(data), np.asarray(data.train), np.asarray(data.test))
    >>> name, round(scores["accuracy"], 4)
    ('majority class', 0.0983)
    """
    if task.name == "regression":
        return "mean of training", task.scores(np.zeros((len(test), task.width)), test, 0.0)
    if task.name == "multilabel":
        outputs = np.tile(task.labels[train].mean(0, dtype=np.float32), (len(test), 1))
        level = task.threshold(np.tile(outputs[:1], (len(train), 1)), train)
        return "commonest labels", task.scores(outputs, test, level)
    counts = np.bincount(task.labels[train], minlength=task.width)
    outputs = np.tile(np.eye(task.width)[counts.argmax()], (len(test), 1))
    return "majority class", task.scores(outputs, test, 0.0)


def print_scores(scores: Scores, title: str) -> None:
    """All scores on the terminal: the mean over the runs and, of several, the standard deviation.

    >>> print_scores({"GraphSAGE": [{"auc": 0.5}, {"auc": 0.7}]}, "8 test links")
           8 test links
    ...
    │ GraphSAGE │ 0.6000 ± 0.1000 │
    ...
    """
    names = list(next(iter(scores.values()))[0])
    table = Table("model", *names, title=title)
    for model, rows in scores.items():
        table.add_row(model, *(_mean_std([row[name] for row in rows]) for name in names))
    _console().print(table)


def print_tables(
    task: Task, dataset: Dataset, scores: Scores, outputs: Float[np.ndarray, "test width"]
) -> None:
    """The scores of every model, and for classes those of each class by `outputs`, the first model's last.

    >>> from jsage.data import digits
    >>> from jsage.recipes.tasks import make_task
    >>> data = digits()
    >>> outputs = np.eye(10)[np.asarray(data.labels)[np.asarray(data.test)]]
    >>> print_tables(make_task(data), data, {"oracle": [{"accuracy": 1.0}]}, outputs)
       997 test nodes
    ...
    """
    print_scores(scores, f"{len(dataset.test):,} test nodes")
    if task.name != "classification":
        return
    found = metrics.per_class(metrics.confusion(outputs, task.labels[np.asarray(dataset.test)]))
    table = Table("class", *found._fields, title=f"{next(iter(scores))}, last run")
    for label, (*ratios, support) in enumerate(zip(*found, strict=True)):
        table.add_row(str(label), *(f"{ratio:.3f}" for ratio in ratios), f"{int(support):,}")
    _console().print(table)


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 120)


def _mean_std(values: list[float]) -> str:
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values):.4f}" if len(values) > 1 else "")
