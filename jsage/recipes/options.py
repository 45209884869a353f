"""Options of a run as frozen dataclasses, each field with its help: what a command line offers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


def option(default: Any, text: str, choices: Sequence[str] | None = None) -> Any:
    """A field of a dataclass of options: its default, its help, and what it may be, if that is limited.

    >>> @dataclass(frozen=True)
    ... class Options:
    ...     norm: str = option("none", "normalization of the hidden layers", ("none", "layer"))
    >>> Options(), dataclasses.fields(Options)[0].metadata["choices"]
    (Options(norm='none'), ('none', 'layer'))
    """
    return dataclasses.field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True)
class DataOptions:
    """What is learned from."""

    dataset: str = option("digits", "digits, communities, an .npz file or a graph directory")


@dataclass(frozen=True)
class RunOptions(DataOptions):
    """How long runs train, how many there are, and where they leave their files."""

    FREE: ClassVar[frozenset[str]] = frozenset({"epochs", "patience", "runs", "out", "resume", "save_every"})
    """What may be another when a run goes on: it changes no number of an epoch."""
    epochs: int = option(100, "epochs at most")
    patience: int = option(15, "epochs without a better validation score before stopping")
    runs: int = option(1, "how many runs, with seeds 0 .. runs-1")
    out: str | None = option(None, "folder for checkpoints, metrics.jsonl and pictures")
    resume: bool = option(False, "go on with the runs in --out: the same data and options")
    save_every: int = option(10, "epochs between checkpoints")
