"""Load and run what `jsage.export` wrote. It needs jax, NumPy and flatbuffers, and nothing else of jsage.

Every artefact holds a copy of it, `loader`, for machines where jsage is not installed:

    import sys
    sys.path.insert(0, "artefact")
    import loader

    embedder = loader.load("artefact").place({"indptr": ..., "indices": ..., "features": ...})
    rows = embedder.embed([3, 1, 2])

The graph and the features are arguments: `place` takes newer ones, and compiles only if their shapes differ.
"""

from .embedder import Artifact as Artifact
from .embedder import Embedder as Embedder
from .files import load as load
