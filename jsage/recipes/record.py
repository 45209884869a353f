"""What a run writes: checkpoints, metrics.jsonl, a progress bar; and how it goes on from there."""

import dataclasses
import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jsage._internal.checksums import checksums
from jsage._internal.files import checksum, locked, replaced, to_json
from jsage.recipes.options import RunOptions
from jsage.sampling import fast_key
from jsage.train import EarlyStopping, TrainState, checkpoint
from jsage.typing import PRNGKey

Row = dict[str, Any]
"""One epoch: `epoch`, `loss`, `seconds`, then what validation says."""
_ABOUT, _METRICS, _CHECKPOINTS = "run.json", "metrics.jsonl", "checkpoints"


class Record:
    """One run's files in the folder `NAME-SEED` of `options.out`, if given, and its line on the terminal.

    `metrics.jsonl` holds one line an epoch; `checkpoints/` every `save_every`-th epoch and the last, each
    with the training state and the early stopping: a killed run goes on bit for bit. `run.json` holds the
    options, but for those in `FREE`, what `about` says beside them (as JSON), and a checksum of every array
    of `data`: a run goes on with the same alone. Of several processes all write the checkpoints together, and
    the first one the rest. One run is in a folder at a time: a second one gets BlockingIOError.

    >>> import tempfile
    >>> options = RunOptions(out=tempfile.mkdtemp())
    >>> with Record("GraphSAGE (mean)", 3, options, rows_per_epoch=1000) as record:
    ...     record.seed, record.folder.name
    (3, 'graphsage-3')
    """

    def __init__(
        self,
        name: str,
        seed: int,
        options: RunOptions,
        rows_per_epoch: int,
        data: PyTree = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.seed, self._options, self._rows, self._data = seed, options, rows_per_epoch, data
        self._about = dict(about or {})
        self.folder = Path(options.out) / f"{name.split()[0].lower()}-{seed}" if options.out else None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        status = (TextColumn("{task.fields[status]}"), TimeRemainingColumn())
        console = Console(stderr=True)
        shown, self._first = console.is_terminal, jax.process_index() == 0
        self._bar = Progress(
            *columns, *status, console=console, transient=True, disable=not (shown and self._first)
        )
        self._held = ExitStack()
        self._task = self._bar.add_task(f"{name} run {seed}", total=options.epochs, status="compiling")

    def __enter__(self) -> "Record":
        if self.folder is not None and self._first:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(locked(self.folder, inside=True))
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        self._held.close()

    @property
    def key(self) -> PRNGKey:
        """The random key of the run's seed."""
        return fast_key(self.seed)

    def restore(
        self, state: TrainState, stopping: EarlyStopping
    ) -> tuple[TrainState, EarlyStopping, list[Row]]:
        """The last checkpoint and the history up to it where `resume` asks for them, else what is given.

        Raises FileExistsError where a run is there that was not to be resumed, and ValueError that names each
        difference for one of other data or options, or a damaged one.
        """
        if self.folder is None:
            return state, stopping, []
        about, step = self._describe(), checkpoint.latest_step(self.folder / _CHECKPOINTS)
        if step is None:
            if self._first:
                with replaced(self.folder / _ABOUT) as file:
                    file.write(to_json({"sha256": checksum(about), **about}, indent=1).encode())
            return state, stopping, []
        if not self._options.resume:
            raise FileExistsError(f"{self.folder} holds a run already: pass --resume, or another --out")
        _check_same(self.folder, about)
        saved = checkpoint.restore(self.folder / _CHECKPOINTS, {"state": state, "stopping": stopping})
        history = _read_history(self.folder / _METRICS, step)
        self._bar.update(self._task, completed=step)
        return saved["state"], saved["stopping"], history

    def _describe(self) -> dict[str, Any]:
        """What must be the same when the run goes on; where the data are known, their name may be another."""
        free = {*self._options.FREE, *(() if self._data is None else ("dataset",))}
        options = {k: v for k, v in dataclasses.asdict(self._options).items() if k not in free}
        data = {f"data/{name}": found for name, found in checksums(self._data).items()}
        return json.loads(to_json({**options, **self._about, **data}))

    def keep(self, history: list[Row], tree: PyTree, *, last: bool) -> None:
        """Report the newest epoch; write the history and, when due, a checkpoint of `tree`."""
        row, epochs = history[-1], len(history)
        name, score = list(row.items())[-1]
        speed = self._rows / max(row["seconds"], 1e-9)
        status = f"loss {row['loss']:.3f}  {name} {score:.3f}  {speed:,.0f} seeds/s"
        self._bar.update(self._task, completed=self._options.epochs if last else epochs, status=status)
        if self.folder is None or not (last or epochs % self._options.save_every == 0):
            return
        if self._first:
            with replaced(self.folder / _METRICS) as file:
                file.writelines(to_json(row).encode() + b"\n" for row in history)
        checkpoint.save(self.folder / _CHECKPOINTS, epochs, tree)


def _check_same(folder: Path, about: dict[str, Any]) -> None:
    """ValueError that names what is not as it was when the run began."""
    try:
        before = json.loads((folder / _ABOUT).read_text())
        whole = before.pop("sha256") == checksum(before)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole, before = False, {}
    if not whole:
        raise ValueError(
            f"{folder / _ABOUT} is missing or damaged, so it is not known what the run was: start again in "
            "another --out"
        )
    names = [name for name in {**before, **about} if before.get(name) != about.get(name)]
    if names:
        told = "; ".join(f"{name} was {before.get(name)}, is {about.get(name)}" for name in names)
        raise ValueError(f"resume: {told}: give what the run in {folder} was given, or another --out")


def _read_history(file: Path, epochs: int) -> list[Row]:
    """The rows of the epochs up to a checkpoint; null is NaN."""
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()[:epochs]]
        whole = [row["epoch"] for row in rows] == list(range(1, epochs + 1))
    except (OSError, ValueError, KeyError, TypeError):
        whole, rows = False, []
    if not whole:
        raise ValueError(
            f"{file} is damaged: expected the epochs 1 .. {epochs} of the last checkpoint, a line each: put "
            "the file back, or start again in another --out"
        )
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]
