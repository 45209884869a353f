"""What a run writes: checkpoints, metrics.jsonl, a progress bar; and how it goes on from there."""

import json
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jsage._internal.files import replaced
from jsage.recipes.options import RunOptions
from jsage.train import EarlyStopping, TrainState, checkpoint
from jsage.typing import PRNGKey

Row = dict[str, Any]
"""One epoch: `epoch`, `loss`, `seconds`, then what validation says."""


class Record:
    """One run's files in the folder `NAME-SEED` of `options.out`, if given, and its line on the terminal.

    `metrics.jsonl` holds one line an epoch; `checkpoints/` every `save_every`-th epoch and the last, each
    with the training state and the early stopping: a killed run goes on bit for bit. Of several processes all
    write the checkpoints together, and the first one the lines.

    >>> with Record("GraphSAGE (mean)", 3, RunOptions(out="scores"), rows_per_epoch=1000) as record:
    ...     record.seed, str(record.folder)
    (3, 'scores/graphsage-3')
    """

    def __init__(self, name: str, seed: int, options: RunOptions, rows_per_epoch: int) -> None:
        self.seed, self._options, self._rows = seed, options, rows_per_epoch
        self.folder = Path(options.out) / f"{name.split()[0].lower()}-{seed}" if options.out else None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        status = (TextColumn("{task.fields[status]}"), TimeRemainingColumn())
        console = Console(stderr=True)
        shown, self._first = console.is_terminal, jax.process_index() == 0
        self._bar = Progress(
            *columns, *status, console=console, transient=True, disable=not (shown and self._first)
        )
        self._task = self._bar.add_task(f"{name} run {seed}", total=options.epochs, status="compiling")

    def __enter__(self) -> "Record":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    @property
    def key(self) -> PRNGKey:
        """The random key of the run's seed."""
        return jax.random.key(self.seed, impl="philox4x32")

    def restore(
        self, state: TrainState, stopping: EarlyStopping
    ) -> tuple[TrainState, EarlyStopping, list[Row]]:
        """The last checkpoint and the history up to it where `resume` asks for them, else what is given.

        Raises FileExistsError where a run is there that was not to be resumed.
        """
        if self.folder is None or checkpoint.latest_step(self.folder / "checkpoints") is None:
            return state, stopping, []
        if not self._options.resume:
            raise FileExistsError(f"{self.folder} holds a run already: pass --resume, or another --out")
        saved = checkpoint.restore(self.folder / "checkpoints", {"state": state, "stopping": stopping})
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        history = [json.loads(line) for line in lines[: checkpoint.latest_step(self.folder / "checkpoints")]]
        self._bar.update(self._task, completed=len(history))
        return saved["state"], saved["stopping"], history

    def keep(self, history: list[Row], tree: PyTree, *, last: bool) -> None:
        """Report the newest epoch; write the history and, when due, a checkpoint of `tree`."""
        row, epochs = history[-1], len(history)
        name, score = list(row.items())[-1]
        speed = self._rows / max(row["seconds"], 1e-9)
        status = f"loss {row['loss']:.3f}  {name} {score:.3f}  {speed:,.0f} seeds/s"
        self._bar.update(self._task, completed=self._options.epochs if last else epochs, status=status)
        if self.folder is None or not (last or epochs % self._options.save_every == 0):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._first:
            with replaced(self.folder / "metrics.jsonl") as file:
                file.writelines(json.dumps(row).encode() + b"\n" for row in history)
        checkpoint.save(self.folder / "checkpoints", epochs, tree)
