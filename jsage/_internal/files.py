"""Files that are there whole or not at all, after a crash too; a record of work that goes on after one."""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_PROGRESS = "progress.json"


@contextmanager
def replaced(path: Path) -> Iterator[IO[Any]]:
    """A file that takes the place of `path` once it is whole and on disk, and is gone if that fails.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replaced(Path(folder, "a")) as file:
    ...         _ = file.write(b"whole")
    ...     Path(folder, "a").read_bytes()
    b'whole'
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush_directory(path.parent)


def flush_directory(path: Path) -> None:
    """Put on disk what a directory holds: names that were made or changed outlive a crash.

    >>> flush_directory(Path("."))
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Record:
    """How far a long piece of work in a folder has come: `progress.json`, that says what the work is, too.

    A folder without it is emptied. `state` is what the last call of `write`, in this process or an earlier
    one, was given; at first nothing. Raises ValueError for a record that is damaged, and for one of another
    run.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> Record(folder, {"seed": 1}).write({"done": 2})
    >>> Record(folder, {"seed": 1}).state
    {'done': 2}
    >>> Record(folder, {"seed": 2})
    Traceback (most recent call last):
    ValueError: ... was left by another run: its seed is 1, expected 2; delete it to start again, or write ...
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.file = folder / _PROGRESS
        self.run: dict[str, Any] = json.loads(json.dumps(run))
        self.state: dict[str, Any] = self._read() if self.file.exists() else {}
        if not self.state:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    def write(self, state: dict[str, Any]) -> None:
        """Keep the state: it takes the place of the old one once it is on disk."""
        self.state = state
        content = {"run": self.run, "state": state}
        part = self.file.with_suffix(".new")
        with part.open("w") as file:
            json.dump({**content, "checksum": _checksum(content)}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.file)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.file.read_text())
            whole = content.pop("checksum") == _checksum(content)
        except (ValueError, KeyError, TypeError, AttributeError):
            whole, content = False, {}
        if not whole:
            raise ValueError(f"{self.file} is damaged: delete the folder {self.file.parent} to start again")
        for key in sorted({*self.run, *content["run"]}):
            expected, found = self.run.get(key), content["run"].get(key)
            if expected != found:
                raise ValueError(
                    f"{self.file.parent} was left by another run: its {key} is {found}, expected {expected}; "
                    "delete it to start again, or write to another path"
                )
        return content["state"]


def _checksum(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def checksum(described: dict) -> str:
    """The SHA-256 of a JSON object, whatever its layout in the file (exports have their own copy).

    >>> checksum({"a": 1, "b": 2}) == checksum({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
