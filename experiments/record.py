"""What a run writes: checkpoints, metrics.jsonl, a progress bar; and how it goes on from there."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.output import write_whole
from jsage.train import checkpoint

if TYPE_CHECKING:
    from experiments.classify import Config
    from jsage.train import EarlyStopping, TrainState


class Record:
    """One run's files in `folder` (None: nothing is written) and its line on the terminal.

    `folder/metrics.jsonl` holds one line an epoch; `folder/checkpoints` every `save_every`-th epoch and the
    last, each with the training state and the early stopping: a killed run goes on bit for bit. Of several
    processes all write the checkpoints together, and the first one the lines.
    """

    def __init__(self, name: str, seed: int, config: "Config", num_seeds: int, folder: Path | None) -> None:
        self.seed, self.folder, self._config, self._num_seeds = seed, folder, config, num_seeds
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        status = (TextColumn("{task.fields[status]}"), TimeRemainingColumn())
        console = Console(stderr=True)
        shown, self._first = console.is_terminal, jax.process_index() == 0
        self._bar = Progress(
            *columns, *status, console=console, transient=True, disable=not (shown and self._first)
        )
        self._task = self._bar.add_task(f"{name} run {seed}", total=config.epochs, status="compiling")

    def __enter__(self) -> "Record":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def restore(
        self, state: "TrainState", stopping: "EarlyStopping"
    ) -> tuple["TrainState", "EarlyStopping", list[dict]]:
        """The last checkpoint and the history up to it where `--resume` asks for them, else what is given."""
        if self.folder is None or checkpoint.latest_step(self.folder / "checkpoints") is None:
            return state, stopping, []
        if not self._config.resume:
            raise FileExistsError(f"{self.folder} holds a run already: pass --resume, or another --out")
        saved = checkpoint.restore(self.folder / "checkpoints", {"state": state, "stopping": stopping})
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        history = [json.loads(line) for line in lines[: checkpoint.latest_step(self.folder / "checkpoints")]]
        self._bar.update(self._task, completed=len(history))
        return saved["state"], saved["stopping"], history

    def keep(self, history: list[dict], tree: Any, *, last: bool) -> None:
        """Report the newest epoch; write the history and, when due, a checkpoint."""
        row, epochs = history[-1], len(history)
        name, score = list(row.items())[-1]
        speed = self._num_seeds / max(row["seconds"], 1e-9)
        status = f"loss {row['loss']:.3f}  {name} {score:.3f}  {speed:,.0f} seeds/s"
        self._bar.update(self._task, completed=self._config.epochs if last else epochs, status=status)
        if self.folder is None or not (last or epochs % self._config.save_every == 0):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._first:
            write_whole(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        checkpoint.save(self.folder / "checkpoints", epochs, tree)
