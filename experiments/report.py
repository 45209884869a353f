"""Tables on the terminal, and curves and a confusion matrix as PNG."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.fit import Run, best
from experiments.tasks import Task
from jsage import metrics
from jsage.data import Dataset

Scores = dict[str, list[dict[str, float]]]
"""model -> one dict of scores a run"""


def summarize(
    config: Any, metric: str, scores: Scores, val: list[float], runs: list[Run], traces: int
) -> dict:
    """The JSON of an experiment: the test scores of `GraphSAGE`, and the means of every model's.

    `val` are the validation scores of the epochs that were kept.
    """
    test = [score[metric] for score in scores["GraphSAGE"]]
    return {
        "dataset": config.dataset,
        "metric": metric,
        "test_mean": float(np.mean(test)),
        "test_std": float(np.std(test)),
        "val_mean": float(np.mean(val)),
        "runs": config.runs,
        "epochs": [len(run.history) for run in runs],
        "seconds_per_epoch": float(np.median([run.seconds_per_epoch for run in runs])),
        "traces": traces,
        "baselines": {
            name: float(np.mean([score[metric] for score in rows])) for name, rows in scores.items()
        },
        "config": dataclasses.asdict(config),
    }


def summarize_all(config: Any, metric: str, scores: Scores, runs: list[Run], traces: Counter[str]) -> dict:
    """The JSON of an experiment whose models have several metrics: the means of all of them in `scores`."""
    mean = {
        name: {kind: float(np.mean([row[kind] for row in rows])) for kind in rows[0]}
        for name, rows in scores.items()
    }
    val = [max(row[f"val_{metric}"] for row in run.history) for run in runs]
    result = summarize(config, metric, scores, val, runs, traces["epoch"])
    del result["baselines"]["GraphSAGE"]
    return result | {"scores": mean}


def show(scores: Scores, title: str) -> None:
    """All scores on the terminal, mean and standard deviation over the runs."""
    names = list(next(iter(scores.values()))[0])
    table = Table("model", *names, title=title)
    for model, rows in scores.items():
        cells = [[row[name] for row in rows] for name in names]
        table.add_row(model, *(f"{np.mean(cell):.4f} ± {np.std(cell):.4f}" for cell in cells))
    Console(width=None if Console().is_terminal else 120).print(table)


def baseline(task: Task, train: np.ndarray, test: np.ndarray) -> tuple[str, dict[str, float]]:
    """The guess that reads no features: the commonest class, the commonest labels, the mean."""
    if task.name == "regression":
        return "mean of training", task.scores(np.zeros((len(test), task.width)), test, 0.0)
    if task.name == "multilabel":
        outputs = np.tile(task.labels[train].mean(0, dtype=np.float32), (len(test), 1))
        level = task.threshold(np.tile(outputs[:1], (len(train), 1)), train)
        return "commonest labels", task.scores(outputs, test, level)
    counts = np.bincount(task.labels[train], minlength=task.width)
    outputs = np.tile(np.eye(task.width)[counts.argmax()], (len(test), 1))
    return "majority class", task.scores(outputs, test, 0.0)


def print_tables(task: Task, dataset: Dataset, scores: Scores, outputs: np.ndarray) -> None:
    """Overall scores of every model, and for classes those of each class in the last GraphSAGE run."""
    console = Console(width=None if Console().is_terminal else 120)
    names = list(next(iter(scores.values()))[0])
    table = Table("model", *names, title=f"{len(dataset.test):,} test nodes")
    for model, runs in scores.items():
        table.add_row(model, *(_mean_std([run[name] for run in runs]) for name in names))
    console.print(table)
    if task.name != "classification":
        return
    found = metrics.per_class(
        metrics.confusion(outputs, np.asarray(dataset.labels)[np.asarray(dataset.test)])
    )
    table = Table("class", *found._fields, title="GraphSAGE, last run")
    for label, (*ratios, support) in enumerate(zip(*found, strict=True)):
        table.add_row(str(label), *(f"{ratio:.3f}" for ratio in ratios), f"{int(support):,}")
    console.print(table)


def save_plots(
    folder: Path, task: Task, dataset: Dataset, histories: list[list[dict]], outputs: np.ndarray
) -> None:
    """`curves.png`, and for classes `confusion.png`, where matplotlib (the `plot` extra) is installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    _curves(folder / "curves.png", task, histories)
    if task.name == "classification":
        labels = np.asarray(dataset.labels)[np.asarray(dataset.test)]
        _confusion(folder / "confusion.png", np.asarray(metrics.confusion(outputs, labels)))


def _curves(path: Path, task: Task, histories: list[list[dict]]) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for history in histories:
        epochs = [row["epoch"] for row in history]
        kept = best(history, task)
        left.plot(epochs, [row["loss"] for row in history], color="C0", alpha=0.7)
        left.plot(epochs, [row["val_loss"] for row in history], color="C1", alpha=0.7)
        right.plot(epochs, [row[f"val_{task.metric}"] for row in history], color="C1", alpha=0.7)
        right.plot(kept["epoch"], kept[f"val_{task.metric}"], "o", color="C3")
    left.legend(left.lines[:2], ["training (with dropout)", "validation"])
    right.legend(right.lines[1:2], ["the best: kept"], loc="lower right")
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel=f"validation {task.metric}")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _confusion(path: Path, counts: np.ndarray) -> None:
    import matplotlib.pyplot as plt

    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 3 + 0.35 * len(counts)
    figure, axes = plt.subplots(figsize=(size, size), layout="constrained")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    ticks = range(len(counts))
    axes.set(xlabel="predicted", ylabel="true", xticks=ticks, yticks=ticks, title="test nodes, last run")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _mean_std(values: list[float]) -> str:
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values):.4f}" if len(values) > 1 else "")
