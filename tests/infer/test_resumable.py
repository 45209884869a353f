"""Stages written part by part, stopped at any of them: what the file holds, and what is computed again."""

from pathlib import Path

import numpy as np
import pytest

from jsage.infer import resumable
from jsage.infer.resumable import Progress, Stage, Stages, parts_of, write_stages

ROWS = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
PARTS = [(name, first) for name in ("twice", "sums") for first in (0, 4, 8)]


class Stop(Exception):
    """Ends a run."""


def stages(computed: list[tuple[str, int]], most: int) -> Stages:
    """Twice the rows, then their running sums; a part beyond `most` stops the run."""

    def stage(name: str, rows: np.ndarray) -> Stage:
        def compute(first: int, last: int) -> np.ndarray:
            if len(computed) == most:
                raise Stop
            computed.append((name, first))
            return rows[first:last]

        return Stage(name, rows.shape, rows.dtype, parts_of(len(rows), 4), compute)

    twice = yield stage("twice", 2 * ROWS)
    yield stage("sums", np.cumsum(twice, 0))


@pytest.mark.parametrize("parts", range(len(PARTS)))
def test_a_run_that_is_stopped_at_any_part_goes_on_to_the_same_file(parts: int, tmp_path: Path):
    path, before, after = tmp_path / "out.npy", [], []
    with pytest.raises(Stop):
        write_stages(path, {}, stages(before, parts), seconds=0.0)
    assert not path.exists()
    assert before == PARTS[:parts]
    write_stages(path, {}, stages(after, len(PARTS)), seconds=0.0)
    np.save(tmp_path / "once.npy", np.cumsum(2 * ROWS, 0))
    assert path.read_bytes() == (tmp_path / "once.npy").read_bytes()
    done = parts if parts % 3 == 0 else parts - 1  # a part goes on record with the next one
    assert after == PARTS[done:]


def test_a_kill_after_the_file_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is left of the folder is removed; nothing is computed again, unless the file is gone too."""

    def stop(folder: Path) -> None:
        raise Stop

    path, again = tmp_path / "out.npy", []
    for name in ("kept", "removed"):
        with monkeypatch.context() as patch:
            patch.setattr(resumable.shutil, "rmtree", lambda folder, **_: folder.exists() and stop(folder))
            with pytest.raises(Stop):
                write_stages(path, {}, stages([], len(PARTS)))
        if name == "removed":
            path.unlink()
        write_stages(path, {}, stages(again, len(PARTS)))
        assert again == (PARTS if name == "removed" else [])
        np.testing.assert_array_equal(np.load(path), np.cumsum(2 * ROWS, 0))
        assert [left.name for left in tmp_path.iterdir()] == ["out.npy"]


def test_a_second_writer_at_once_is_refused(tmp_path: Path):
    path = tmp_path / "out.npy"

    def progress(done: Progress) -> None:
        with pytest.raises(BlockingIOError, match=r"out\.npy is being written already"):
            write_stages(path, {}, stages([], len(PARTS)))

    write_stages(path, {}, stages([], len(PARTS)), progress=progress)
    np.testing.assert_array_equal(np.load(path), np.cumsum(2 * ROWS, 0))
