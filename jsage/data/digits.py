"""A real data set inside the package: handwritten digits joined to their nearest neighbors."""

import lzma
from importlib import resources

import jax.numpy as jnp
import numpy as np

from jsage.data.dataset import Dataset
from jsage.graph import from_edges, symmetrize

_COUNT, _PIXELS = 1797, 64
_TRAIN, _VAL, _UNLABELED = 10, 20, 50


def digits(neighbors: int = 8) -> Dataset:
    """The 1,797 digits of UCI's test set, each joined both ways to its `neighbors` nearest by pixels.

    Features are the 8 x 8 pixels in [0, 1]; labels the digits 0 to 9. Of each digit 10 images are for
    training, 20 for validation, 50 in no split (they join the training graph without labels), and the others,
    997 in all, for testing. The task is inductive: train on `jsage.data.inductive(digits())`, which has no
    test image's edges. Nothing is random.

    Raises ValueError for `neighbors` outside 1 .. 1796.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, 1998, doi:10.24432/C50P49, CC BY 4.0; from scikit-learn's copy, repacked.

    >>> dataset = digits()
    >>> dataset.graph.num_nodes, dataset.train.shape, dataset.val.shape, dataset.test.shape
    (1797, (100,), (200,), (997,))
    """
    if not 1 <= neighbors < _COUNT:
        raise ValueError(f"neighbors must be in 1 .. {_COUNT - 1}, got {neighbors}")
    packed = resources.files("jsage.data").joinpath("digits.xz").read_bytes()
    table = np.frombuffer(lzma.decompress(packed), np.uint8).reshape(_COUNT, _PIXELS + 1)
    pixels, labels = table[:, :-1].astype(np.float32), table[:, -1].astype(np.int32)
    near = _nearest(pixels, neighbors)
    graph = from_edges(near.ravel(), np.repeat(np.arange(_COUNT), neighbors), _COUNT)
    return Dataset(symmetrize(graph), jnp.asarray(pixels / 16), jnp.asarray(labels), *_split(labels))


def _nearest(pixels: np.ndarray, neighbors: int) -> np.ndarray:
    """The `neighbors` nearest others of each row, the first of equals; exact, as pixels are integers."""
    square = (pixels**2).sum(axis=1)
    distance = square[:, None] + square - 2 * pixels @ pixels.T
    rank = distance.astype(np.int64) * _COUNT + np.arange(_COUNT)
    np.fill_diagonal(rank, np.iinfo(np.int64).max)
    return np.argpartition(rank, neighbors - 1, axis=1)[:, :neighbors]


def _split(labels: np.ndarray):
    """Train, validation and test ids: of each digit, spread over the file by multiplicative hashing."""
    order = np.argsort(np.arange(_COUNT) * 2654435761 % 2**32)
    ends = np.cumsum([_TRAIN, _VAL, _UNLABELED])
    parts = [np.split(order[labels[order] == digit], ends) for digit in range(10)]
    train, val, _, test = (
        np.sort(np.concatenate(part)).astype(np.int32) for part in zip(*parts, strict=True)
    )
    return jnp.asarray(train), jnp.asarray(val), jnp.asarray(test)
