"""Files that are there whole or not at all, after a crash too; locks; a record of work to go on with.

Next to `NAME` stand `.NAME.lock`, which the kernel releases when its holder ends, however it does, and what
is being written, `.NAME.new`. Names hold no process id: they come again, in containers at once. Who holds the
lock removes what a run before it left.
"""

import fcntl
import hashlib
import json
import math
import os
import shlex
import shutil
import socket
import sys
import textwrap
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_PROGRESS = "progress.json"


@contextmanager
def locked(path: Path, *, inside: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file or folder, which is beside it, or `inside` a folder that stays.

    Raises BlockingIOError that says who holds it, unless it is to `wait`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder, "a")):
    ...     with locked(Path(folder, "a")):
    ...         pass
    Traceback (most recent call last):
    BlockingIOError: ... is being written already, by ...: wait for that, or write to another path
    """
    lock = path / ".lock" if inside else path.with_name(f".{path.name}.lock")
    while (file := _take(lock, path, wait)) is None:
        pass
    with file:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone


def _take(lock: Path, path: Path, wait: bool) -> IO[Any] | None:
    """The locked file; None where it was removed by who held it before."""
    file = lock.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            file.truncate(0)
            command = textwrap.shorten(shlex.join(sys.orig_argv), 120)
            file.write(f"{command} on {socket.gethostname()}")
            file.flush()
            return file
    except FileNotFoundError:
        pass
    except BlockingIOError as error:
        with file:
            file.seek(0)
            holder = file.read() or "another process"
        raise BlockingIOError(
            f"{path} is being written already, by {holder}: wait for that, or write to another path"
        ) from error
    file.close()
    return None


@contextmanager
def replaced(path: Path) -> Iterator[IO[Any]]:
    """A file that takes the place of `path` once it is whole and on disk, and is gone if that fails.

    Of several that write it at once each waits for the one before.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replaced(Path(folder, "a")) as file:
    ...         _ = file.write(b"whole")
    ...     Path(folder, "a").read_bytes()
    b'whole'
    """
    with locked(path, wait=True), _swapped(path) as file:
        yield file


@contextmanager
def _swapped(path: Path) -> Iterator[IO[Any]]:
    """`replaced` for who holds a lock already."""
    part = path.with_name(f".{path.name}.new")
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


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A folder that gets the name `path` once it is whole, and is gone if that fails.

    What it holds must be on disk by then. Raises FileExistsError as `refuse_existing` does, and
    BlockingIOError while another process writes it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with new_directory(Path(folder, "a")) as part:
    ...         _ = (part / "b").write_text("whole")
    ...     Path(folder, "a", "b").read_text()
    'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path):
        refuse_existing(path)
        part = path.with_name(f".{path.name}.new")
        shutil.rmtree(part, ignore_errors=True)
        try:
            part.mkdir()
            yield part
            flush_directory(part)
            part.rename(path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        flush_directory(path.parent)


def refuse_existing(path: Path) -> None:
    """FileExistsError where `path` exists and is no empty directory.

    >>> refuse_existing(Path("."))
    Traceback (most recent call last):
    FileExistsError: . exists already: remove it first, or choose another name
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already: remove it first, or choose another name")


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

    Who writes it holds a lock. A folder without it is emptied. `state` is what the last call of `write`, in
    this process or an earlier one, was given; at first nothing. Raises ValueError for a record that is
    damaged, and for one of another run.

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
        with _swapped(self.file) as file:
            file.write(json.dumps({**content, "checksum": _checksum(content)}).encode())

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


def to_json(value: Any, indent: int | None = None) -> str:
    """As JSON, which has no NaN: null stands for it, and for what is infinite.

    >>> to_json({"a": [1.0, float("nan")]})
    '{"a": [1.0, null]}'
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(value), indent=indent, allow_nan=False)
