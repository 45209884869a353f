"""Names of nodes: kept beside a graph, for jax knows no text."""

from pathlib import Path

import numpy as np

from jsage.data.formats.directory import directory_names
from jsage.data.formats.npz import npz_names


def read_names(path: str | Path) -> np.ndarray | None:
    """The names of the nodes of a graph directory or an `.npz`: text `[num_nodes]`; None where it has none.

    Node `i` is called `names[i]`; no two are called alike. `jsage.data.save` keeps them with a directory,
    an array `node_name` of text or integers with an `.npz`.

    Raises FileNotFoundError, and ValueError that names the path if it is neither, is damaged, or its names
    are not one a node and distinct.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/pair.npz", edge_index=[[0, 1], [1, 0]], node_name=["Ann", "Bob"])
    ...     read_names(f"{folder}/pair.npz").tolist()
    ['Ann', 'Bob']
    """
    path = Path(path)
    try:
        return directory_names(path) if path.is_dir() else npz_names(path)
    except ValueError as error:
        said = str(error)
        raise ValueError(said if str(path) in said else f"{path}: {said}") from error
