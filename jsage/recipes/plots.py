"""Pictures, where matplotlib and scikit-learn (extra `plot`) are installed: curves, confusion, embeddings."""

from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from jsage import metrics
from jsage.data import Dataset
from jsage.recipes.loop import Run
from jsage.recipes.tasks import Task
from jsage.typing import HostArray

MOST = 2000
"""Points of a picture: t-SNE takes seconds for these."""


def save_plots(
    folder: Path, task: Task, dataset: Dataset, runs: list[Run], outputs: Float[np.ndarray, "test width"]
) -> None:
    """`curves.png` of all runs, and for classes `confusion.png` of `outputs` at the test nodes.

    Nothing is drawn where matplotlib is not installed.

    >>> import tempfile
    >>> from jsage.data import digits
    >>> from jsage.recipes.tasks import make_task
    >>> folder, dataset = Path(tempfile.mkdtemp()), digits()
    >>> row = {"epoch": 1, "loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5}
    >>> outputs = np.eye(10)[np.asarray(dataset.labels)[np.asarray(dataset.test)]]
    >>> save_plots(folder, make_task(dataset), dataset, [Run({}, {}, row, [row])], outputs)
    >>> sorted(file.name for file in folder.iterdir())
    ['confusion.png', 'curves.png']
    """
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    _curves(folder / "curves.png", task, runs)
    if task.name == "classification":
        labels = task.labels[np.asarray(dataset.test)]
        _confusion(folder / "confusion.png", np.asarray(metrics.confusion(outputs, labels)))


def save_tsne(
    path: Path, rows: Float[np.ndarray, "n d"], value: Shaped[np.ndarray, " n"], title: str
) -> None:
    """t-SNE of embeddings, `MOST` of them at random, by their cosines.

    Integers in `value` are classes, each with its color; real numbers have a scale beside. Nothing is drawn
    where matplotlib and scikit-learn are not installed.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "tsne.png")
    >>> save_tsne(path, np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 2, "points")
    >>> path.exists()
    True
    """
    try:
        import matplotlib
        from sklearn.manifold import TSNE
    except ImportError:
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    some = np.random.default_rng(0).permutation(len(rows))[:MOST]
    value, classes = value[some], value.dtype.kind in "iu"
    points = TSNE(metric="cosine", init="pca", perplexity=min(30, len(some) / 4), random_state=0)
    x, y = points.fit_transform(rows[some]).T
    colors = "viridis" if not classes else "tab10" if value.max() < 10 else "tab20"
    figure, axes = plt.subplots(figsize=(6, 6) if classes else (7, 6), layout="constrained")
    dots = axes.scatter(x, y, c=value, s=8, cmap=colors, linewidths=0)
    axes.set(title=f"{len(some):,} {title}", xticks=[], yticks=[])
    if not classes:
        figure.colorbar(dots, ax=axes)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def node_colors(
    labels: Shaped[HostArray, "n *c"] | None, degree: Shaped[HostArray, " n"]
) -> tuple[np.ndarray, str]:
    """What nodes are colored by, and its name: classes (the first of several), or degrees without them.

    >>> node_colors(None, np.array([0, 9, 99]))
    (array([0., 1., 2.]), 'log10(1 + degree)')
    """
    if labels is None or np.asarray(labels).dtype.kind == "f":
        return np.log10(1 + np.asarray(degree)), "log10(1 + degree)"
    classes = np.asarray(labels)
    return classes if classes.ndim == 1 else classes.argmax(1), "label, which no embedding saw"


def _curves(path: Path, task: Task, runs: list[Run]) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for run in runs:
        history = run.history
        epochs = [row["epoch"] for row in history]
        left.plot(epochs, [row["loss"] for row in history], color="C0", alpha=0.7)
        left.plot(epochs, [row["val_loss"] for row in history], color="C1", alpha=0.7)
        right.plot(epochs, [row[f"val_{task.metric}"] for row in history], color="C1", alpha=0.7)
        right.plot(run.best["epoch"], run.best[f"val_{task.metric}"], "o", color="C3")
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
            color = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=8)
    ticks = range(len(counts))
    axes.set(xlabel="predicted", ylabel="true", xticks=ticks, yticks=ticks, title="test nodes, last run")
    figure.savefig(path, dpi=120)
    plt.close(figure)
