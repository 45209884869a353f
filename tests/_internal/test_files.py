"""Locks that one process holds at a time and none after its death; files and folders whole or not at all."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jsage._internal.files import locked, new_directory, replaced, to_json

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_second_holder_is_refused_and_told_who_is_first(tmp_path: Path):
    path = tmp_path / "a"
    with locked(path):
        message = r"a is being written already, by .*python.* on \w+"
        with pytest.raises(BlockingIOError, match=message), locked(path):
            pass
        with locked(tmp_path / "b"), locked(tmp_path, inside=True):
            assert names(tmp_path) == [".a.lock", ".b.lock", ".lock"]
    with locked(path):
        pass
    assert names(tmp_path) == []


def test_who_waits_comes_in_alone(tmp_path: Path):
    """A lock that is removed while others wait for it, or open it, lets no two in."""
    path = tmp_path / "count"
    path.write_text("0")

    def add(_: int) -> None:
        with locked(path, wait=True):
            number = int(path.read_text())
            path.write_text(str(number + 1))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(400)))
    assert path.read_text() == "400"
    assert names(tmp_path) == ["count"]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path):
    code = (
        "import os, signal, sys; from pathlib import Path; from jsage._internal.files import new_directory\n"
        "with new_directory(Path(sys.argv[1])) as part:\n"
        "    (part / 'half').write_text('')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], env=environment, check=False)
    assert names(tmp_path) == [".a.lock", ".a.new"]
    with new_directory(tmp_path / "a") as part:
        assert names(part) == [], "what was left is gone"
        (part / "whole").write_text("")
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["whole"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "a"
    (tmp_path / ".a.new").write_bytes(b"what a killed process left")
    with replaced(path) as file:
        file.write(b"first")
        assert not path.exists()
    with pytest.raises(ZeroDivisionError), replaced(path) as file:
        file.write(b"second" * (1 // 0))
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_a_folder_is_made_by_one_at_a_time_and_replaces_nothing(tmp_path: Path):
    path = tmp_path / "deep" / "a"
    with new_directory(path):
        with pytest.raises(BlockingIOError, match="a is being written already"), new_directory(path):
            pass
        assert names(path.parent) == [".a.lock", ".a.new"], "the first one's is left alone"
    (path / "b").write_text("")
    with pytest.raises(FileExistsError, match="a exists already"), new_directory(path):
        pass
    assert names(path) == ["b"]
    assert names(path.parent) == ["a"]


def test_json_has_no_nan():
    value = {"a": [float("nan"), 1.5], "b": {"c": float("inf")}, "d": "NaN", "e": (1, None)}
    expected = {"a": [None, 1.5], "b": {"c": None}, "d": "NaN", "e": [1, None]}
    assert json.loads(to_json(value), parse_constant=pytest.fail) == expected
