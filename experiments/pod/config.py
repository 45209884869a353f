"""The options of `experiments.pod`."""

from dataclasses import dataclass

from experiments.common.config import PLACEMENTS, MeshOptions, SupervisedOptions
from jsage.recipes.options import option


@dataclass(frozen=True)
class Config(SupervisedOptions, MeshOptions):
    """Every option; the recipe is that of `experiments.classify`."""

    FREE = SupervisedOptions.FREE | {
        "devices",
        "coordinator",
        "process",
        "processes",
        "timeout",
        "memory",
        "dry_run",
    }
    dataset: str = option("communities", "communities, an .npz file, a graph directory or a sharded one")
    placement: str = option(
        "hashed", "which device owns a node; a sharded directory has its own", list(PLACEMENTS)
    )
    cache: int = option(0, "rows of the most read nodes that every device has a copy of")
    coordinator: str | None = option(None, "HOST:PORT of process 0, or auto on Cloud TPU; none: one process")
    process: str = option("0", "the number of this process")
    processes: int = option(1, "how many processes there are")
    timeout: int = option(100, "seconds without a sign of a process before the others stop")
    memory: float = option(0.0, "GB of each device; 0: what it says itself, if it does")
    dry_run: bool = option(False, "print what each device would hold, and stop")
    batch_size: int = option(512, "seeds a step, of all devices together")
    out: str | None = option(None, "folder for checkpoints, metrics.jsonl and plots, that all processes see")
    resume: bool = option(False, "go on with the runs in --out, on any number of devices")
