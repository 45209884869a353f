"""Our side of `benchmarks.infer`, in a process told what to do over pipes.

Forms: `device`, `embed_all`; `file`, `embed_to_file`. With `kill_at` the process kills itself (SIGKILL) once
that share of the result's rows is written.
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.common import versions
from benchmarks.peers.process import peak_rss_bytes, reset_peak_rss, serve
from jsage import data
from jsage.infer import Progress, StreamOptions, embed_all, embed_to_file
from jsage.nn import GraphSAGE

FORMS = ("device", "file")


class Inference:
    """Embeds every node of one graph in either form, with the parameters that it is given."""

    def __init__(self, folder: Path):
        self._dataset = data.open(folder)

    def __call__(self, request: dict) -> dict:
        """Infer as `{"form", "parameters", "target", "check"}` asks, or say what can be run."""
        if "form" not in request:
            return {"forms": dict.fromkeys(FORMS), "versions": versions()}
        model, params = read_model(request["parameters"])
        graph, features, target = self._dataset.graph, self._dataset.features, request["target"]
        reset_peak_rss()
        start = time.perf_counter()
        if request["form"] == "device":
            out = np.asarray(jax.block_until_ready(embed_all(model, params, graph, features)))
        else:
            progress = None if "kill_at" not in request else kill_at(request["kill_at"], model.num_layers)
            embed_to_file(target, model, params, graph, features, StreamOptions(progress=progress))
            out = np.load(target, mmap_mode="r")
        answer = {"seconds": time.perf_counter() - start, "peak_rss_bytes": peak_rss_bytes()}
        return {**answer, "rows": out[request["check"]].tolist(), "sha256": digest(target, request["form"])}


def kill_at(share: float, num_layers: int):
    def progress(done: Progress) -> None:
        if done.stage == f"layer-{num_layers - 1}" and done.done >= share * done.total:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def read_model(path: str) -> tuple[GraphSAGE, dict]:
    """The model and its parameters: `self_k`, `neigh_k` and `bias_k` of layer `k` in a `.npz` file."""
    with np.load(path) as found:
        depth = sum(name.startswith("self_") for name in found.files)
        layers = {
            f"convs_{k}": {
                "self": {"kernel": found[f"self_{k}"]},
                "neigh": {"kernel": found[f"neigh_{k}"]},
                "bias": found[f"bias_{k}"],
            }
            for k in range(depth)
        }
        hidden, out = found["bias_0"].size, found[f"bias_{depth - 1}"].size
    return GraphSAGE(hidden, out, num_layers=depth), {"params": layers}


def digest(target: str, form: str) -> str | None:
    if form == "device":
        return None
    with open(target, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    serve(Inference(Path(sys.argv[1])))
