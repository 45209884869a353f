"""The arrays of a directory: a `.npy` file each, and an entry of `meta.json` that says what it must be."""

import hashlib
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jsage.typing import HostArray


class ArrayWriter:
    """A `.npy` file written a few rows at a time, hashed as it is written; bfloat16 is stored as uint16.

    Raises ValueError for objects, which would be pickled.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> writer = ArrayWriter(folder / "a.npy", (3,), np.int32)
    >>> writer.append(np.arange(2))
    >>> writer.append(np.arange(1))
    >>> writer.finish()["bytes"], np.load(folder / "a.npy").tolist()
    (140, [0, 1, 0])
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        if self.dtype.hasobject:
            raise ValueError(f"{path.name} would hold Python objects: give numbers")
        stored = np.dtype(np.uint16) if self.dtype == jnp.bfloat16 else self.dtype
        self._file, self._hash = path.open("w+b"), hashlib.sha256()
        header = {"descr": np.lib.format.dtype_to_descr(stored), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.seek(0)
        self._hash.update(self._file.read())
        self._whole = self._file.tell() + int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """What one row takes."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def append(self, rows: HostArray) -> None:
        """Write the next rows."""
        content = bytes_of(np.ascontiguousarray(rows, self.dtype))
        self._file.write(content)
        self._hash.update(content)

    def close(self) -> None:
        """Close the file, whole or not."""
        self._file.close()

    def finish(self) -> dict:
        """Put the file on disk and close it; its entry, or RuntimeError if rows are missing."""
        self._file.flush()
        os.fsync(self._file.fileno())
        written = self._file.tell()
        self.close()
        if written != self._whole:
            raise RuntimeError(f"{self.path} must have {self._whole} bytes, but {written} were written")
        entry = {"shape": list(self.shape), "dtype": self.dtype.name}
        return {**entry, "bytes": written, "sha256": self._hash.hexdigest()}


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of an array's numbers, row by row.

    >>> bytes(bytes_of(np.array([1, 258], np.int16)))
    b'\\x01\\x00\\x02\\x01'
    """
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def check_file(path: Path, entry: dict, *, verify: bool = False) -> None:
    """Hold a file's size against its entry of `meta.json`, and its SHA-256 too where `verify` asks for it.

    Raises FileNotFoundError and ValueError that name the file and say what was expected.

    >>> check_file(Path("nowhere.npy"), {"bytes": 8})
    Traceback (most recent call last):
    FileNotFoundError: nowhere.npy is missing, but meta.json lists it: write the directory again
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, but meta.json lists it: write the directory again")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise ValueError(
            f"{path} is half-written: expected {entry['bytes']} bytes (meta.json), got {size}: "
            "write the directory again"
        )
    if verify and (found := file_sha256(path)) != entry["sha256"]:
        raise ValueError(
            f"{path} is damaged or another directory's: expected SHA-256 {entry['sha256']} (meta.json), got "
            f"{found}: copy or write it again"
        )


def map_array(path: Path, entry: dict) -> np.ndarray:
    """A file as a read-only memory map, its size, shape and type held against its entry of `meta.json`.

    Raises as `check_file` does, and ValueError for a file of another shape or type.

    >>> map_array(Path("nowhere.npy"), {"bytes": 8})
    Traceback (most recent call last):
    FileNotFoundError: nowhere.npy is missing, but meta.json lists it: write the directory again
    """
    check_file(path, entry)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header may say anything
        raise ValueError(f"{path} is not a plain .npy file: {error}") from error
    if entry["dtype"] == "bfloat16" and array.dtype == np.uint16:
        array = array.view(jnp.bfloat16)
    if list(array.shape) != entry["shape"] or array.dtype.name != entry["dtype"]:
        raise ValueError(
            f"{path} must be {entry['dtype']} {entry['shape']} (meta.json), "
            f"got {array.dtype} {list(array.shape)}: write the directory again"
        )
    return array


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     (path := Path(folder) / "empty").touch()
    ...     file_sha256(path)[:8]
    'e3b0c442'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
