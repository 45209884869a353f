"""Stages written part by part, stopped at any of them: what the file holds, and what is computed again."""

from pathlib import Path

import numpy as np
import pytest

from jsage.infer.resumable import Stage, Stages, parts_of, write_stages

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
