"""Embeddings in two dimensions."""

from pathlib import Path

import numpy as np

from jsage.typing import HostArray

MOST = 2000
"""Points of a picture: t-SNE takes seconds for these."""


def draw(path: Path, rows: np.ndarray, value: np.ndarray, title: str) -> None:
    """t-SNE of embeddings, `MOST` of them at random, by their cosines.

    Integers in `value` are classes, each with its colour; real numbers have a scale beside. Nothing is drawn
    where matplotlib and scikit-learn (the `plot` extra) are not installed.
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
    colours = "viridis" if not classes else "tab10" if value.max() < 10 else "tab20"
    figure, axes = plt.subplots(figsize=(6, 6) if classes else (7, 6), layout="constrained")
    dots = axes.scatter(x, y, c=value, s=8, cmap=colours, linewidths=0)
    axes.set(title=f"{len(some):,} {title}", xticks=[], yticks=[])
    if not classes:
        figure.colorbar(dots, ax=axes)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def colour(labels: HostArray | None, degree: HostArray) -> tuple[np.ndarray, str]:
    """What nodes are coloured by, and its name: classes (the first of several), or degrees without them."""
    if labels is None or np.asarray(labels).dtype.kind == "f":
        return np.log10(1 + np.asarray(degree)), "log10(1 + degree)"
    classes = np.asarray(labels)
    return classes if classes.ndim == 1 else classes.argmax(1), "label, which no embedding saw"
