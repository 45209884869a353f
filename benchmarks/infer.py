"""Every node's embedding from whole neighborhoods, beside PyG on the same machine, taking turns.

    python -m benchmarks.infer --graph graphs/products --peer-python PYTHON --json infer.json

PYTHON is an interpreter with torch and torch_geometric; without it our side runs alone. Each side has a
process of its own, and only one works at a time; the same parameters go to all, and the rows that they give
are compared. Our run into a file is also killed (SIGKILL) half-way through the last layer and resumed by
another process: the file must have the same bits. `benchmarks/peers/pyg_infer.py` says what PyG's forms are.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.common import parser, run, summary
from benchmarks.peers.process import Worker
from jsage import data

OURS = ("jsage", "device")
FORMS = ("sparse", "sparse_projected", "torch_sparse", "segments", "loader")
"""PyG's."""

Form = tuple[str, str]


def main(options: argparse.Namespace) -> list[dict]:
    """A row a form: seconds, memory, the ratio to ours, and how far its rows are from ours."""
    dataset = data.open(options.graph)
    if dataset.features is None:
        raise ValueError("inference needs features: make a graph with benchmarks.make_graph")
    nbytes = sum(x.nbytes for x in (dataset.graph.indptr, dataset.graph.indices, dataset.features))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        request = {
            "parameters": parameters(Path(folder) / "p.npz", dataset.features.shape[1], options),
            "target": f"{folder}/all.npy",
            "check": np.linspace(0, len(dataset.features) - 1, 1000, dtype=int).tolist(),
        }
        answers, lacking, versions = measure(request, options)
        rows = compare(answers, lacking, nbytes)
        bits = next(a["sha256"] for a in answers["jsage", "file"] if a["sha256"])
        resumed = resume(request, options)
    shape = {"nodes": dataset.graph.num_nodes, "edges": dataset.graph.num_edges, "data_bytes": nbytes}
    widths = {"widths": [dataset.features.shape[1], options.hidden, options.out]}
    return [
        *(
            {**shape, **widths, "side": form[0], "form": form[1], **row, **versions[form[0]]}
            for form, row in rows
        ),
        {"side": "jsage", "form": "file, killed and resumed", "bit_identical": resumed == bits},
    ]


def parameters(path: Path, width: int, options: argparse.Namespace) -> str:
    """Random matrices of two layers, written where all sides read them."""
    random, arrays = np.random.default_rng(0), {}
    for k, (a, b) in enumerate(((width, options.hidden), (options.hidden, options.out))):
        for name in ("self", "neigh"):
            arrays[f"{name}_{k}"] = (random.normal(size=(a, b)) / np.sqrt(a)).astype(np.float32)
        arrays[f"bias_{k}"] = random.normal(size=b).astype(np.float32)
    np.savez(path, **arrays)
    return str(path)


def measure(request: dict, options: argparse.Namespace) -> tuple[dict, dict, dict]:
    """All forms in turn, round after round; the first compiles and warms up."""
    folder, environment = [str(options.graph.resolve())], cpu()
    with Worker(sys.executable, "benchmarks.peers.jsage_infer", folder, environment) as ours:
        sides = {"jsage": (ours, ["device", "file"])}
        if options.peer_python is None:
            return rounds(sides, request, options)
        with Worker(options.peer_python, "benchmarks.peers.pyg_infer", folder, environment) as theirs:
            return rounds({**sides, "pyg": (theirs, options.peer_forms)}, request, options)


def rounds(
    sides: dict[str, tuple[Any, list[str]]], request: dict, options: argparse.Namespace
) -> tuple[dict[Form, list[dict]], dict[Form, str | None], dict[str, dict]]:
    said = {side: worker.request({}) for side, (worker, _) in sides.items()}
    lacking: dict[Form, str | None] = {
        (side, form): said[side]["forms"][form] for side, (_, forms) in sides.items() for form in forms
    }
    answers: dict[Form, list[dict]] = {form: [] for form in lacking}
    for _ in range(1 + options.rounds):
        for side, form in answers:
            if lacking[side, form] is None:
                answer = sides[side][0].request({**request, "form": form})
                lacking[side, form] = answer.get("error")
                answers[side, form].append(answer)
    versions = {side: {"versions": said[side]["versions"]} if side == "pyg" else {} for side in sides}
    return answers, lacking, versions


def compare(
    answers: dict[Form, list[dict]], lacking: dict[Form, str | None], nbytes: int
) -> list[tuple[Form, dict]]:
    """The figures of each form; the first round is left out."""
    if lacking[OURS] or lacking["jsage", "file"]:
        raise RuntimeError(f"our own inference failed: {lacking[OURS] or lacking['jsage', 'file']}")
    ours, expected = [a["seconds"] for a in answers[OURS][1:]], np.array(answers[OURS][0]["rows"])
    rows = []
    for form, found in answers.items():
        if lacking[form]:
            rows.append((form, {"not_run": lacking[form]}))
            continue
        seconds = [answer["seconds"] for answer in found[1:]]
        ratios = [time / own for time, own in zip(seconds, ours, strict=True)]
        figures = {
            **summary(seconds),
            "rounds": len(seconds),
            "ratios_to_jsage": ratios,
            "ratio_to_jsage": median(ratios),
            "peak_bytes_beyond_data": max(answer["peak_rss_bytes"] for answer in found[1:]) - nbytes,
            "largest_difference": float(np.abs(np.array(found[-1]["rows"]) - expected).max()),
        }
        rows.append((form, figures))
    return rows


def resume(request: dict, options: argparse.Namespace) -> str:
    """The digest of a file whose writer was killed half-way through the last layer."""
    folder, request = [str(options.graph.resolve())], {**request, "form": "file"}
    Path(request["target"]).unlink()
    with Worker(sys.executable, "benchmarks.peers.jsage_infer", folder, cpu()) as doomed:
        try:
            answer = doomed.request({**request, "kill_at": 0.5})
            raise ValueError(f"the run that was to be killed ended by itself: {answer}")
        except RuntimeError:
            pass
    if Path(request["target"]).exists():
        raise ValueError("the killed run left a file under the result's name")
    with Worker(sys.executable, "benchmarks.peers.jsage_infer", folder, cpu()) as second:
        answer = second.request(request)
    if "error" in answer:
        raise ValueError(f"the killed run could not be resumed: {answer['error']}")
    return answer["sha256"]


def cpu() -> dict[str, str]:
    return {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def options() -> argparse.ArgumentParser:
    made = parser("infer", __doc__)
    made.add_argument("--peer-python", help="an interpreter that has torch and torch_geometric")
    made.add_argument("--peer-forms", nargs="+", default=list(FORMS[:3]), help="which of PyG's forms to run")
    made.add_argument("--hidden", type=int, default=256, help="width of the hidden layer (default: 256)")
    made.add_argument("--out", type=int, default=47, help="width of the result (default: 47)")
    made.add_argument("--rounds", type=int, default=3, help="rounds that are timed (default: 3)")
    made.add_argument("--folder", type=Path, help="where files are written (default: a temporary folder)")
    return made


if __name__ == "__main__":
    sys.exit(run(options(), main))
