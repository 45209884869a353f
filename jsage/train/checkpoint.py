"""Checkpoints of any pytree of arrays: written whole or not at all, restored only into a tree like the saved.

Each is a folder `folder/<step>` in Orbax's format. It appears by one rename once it is complete, so a process
killed at any moment leaves the earlier ones as they were; what it had begun is removed by the next `save`.
A checksum of every array is kept beside the numbers, and `restore` compares it. One run writes to a folder
at a time: its processes, where it has several (`jax.distributed`), make every call together, and the folder
is one that all of them see. Each writes and reads its own parts of arrays that are split over devices;
`restore` takes any number of devices, however many had written.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from jsage._internal.checksums import checksums
from jsage._internal.files import locked

_DELETED = "deleted"  # where a whole checkpoint goes by one rename, for no step may be there in half


def save(folder: str | os.PathLike[str], step: int, tree: PyTree, *, keep: int = 2) -> Path:
    """Write `tree` to `folder/<step>` and delete all but the newest `keep`; on return it is on disk.

    Leaves are arrays of jax or NumPy, typed random keys included: a state, or a state beside early stopping.
    Raises ValueError for a step that is not above the latest, BlockingIOError while another process saves
    there, and OSError for a failed write (a full disk): nothing of it is left, and earlier checkpoints are
    intact.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> state = {"w": jnp.arange(3.0), "key": jax.random.key(1)}
    >>> save(folder, 10, state).name, latest_step(folder)
    ('10', 10)
    >>> restore(folder, {"w": jnp.zeros(3), "key": jax.random.key(0)})["w"]
    Array([0., 1., 2.], dtype=float32)
    """
    folder, leaves = Path(folder).absolute(), _leaves(tree)
    with _alone(folder):
        _check_new(folder, step, keep)
        arrays = {path: _raw(leaf) for path, leaf in leaves.items() if not _is_empty(leaf)}
        told = {"leaves": _kinds(leaves), "checksums": checksums(arrays)}
        try:
            _sweep(folder)
            with _manager(folder, keep) as manager:
                manager.save(step, args=ocp.args.StandardSave(arrays), custom_metadata=told)
        except Exception as error:
            raise OSError(_write_failure(folder, step, arrays, error)) from error
        finally:
            _sweep(folder)
    return folder / str(step)


def restore(folder: str | os.PathLike[str], like: PyTree, *, step: int | None = None) -> PyTree:
    """Read the checkpoint of `step`, the latest by default, into the structure and placement of `like`.

    `like` is the tree that a fresh run would start from; its values are not used. Raises FileNotFoundError
    where there is no such checkpoint and ValueError for one of another model, naming the first leaf whose
    path, dtype or shape differs, and for a damaged one.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = save(folder, 1, {"w": jnp.zeros((3, 4))})
    >>> restore(folder, {"w": jnp.zeros((3, 5))})
    Traceback (most recent call last):
    ValueError: checkpoint ... is of another model: at w it holds float32[3,4], expected float32[3,5]; ...
    """
    path, leaves = _find(Path(folder).absolute(), step), _leaves(like)
    with _manager(path.parent) as manager:
        with _damage_explained(path):
            told = manager.metadata(int(path.name)).custom_metadata
            found, sums = told["leaves"], told["checksums"]
        _check_same_model(path, found, _kinds(leaves))
        targets = {name: _target(_raw(leaf)) for name, leaf in leaves.items() if not _is_empty(leaf)}
        with _damage_explained(path):
            arrays = manager.restore(int(path.name), args=ocp.args.StandardRestore(targets))
            _check_sums(sums, checksums(arrays))
    placed = [_place(arrays[name], leaf) if name in arrays else leaf for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """List the steps of the complete checkpoints in `folder`, ascending; no folder has none.

    >>> steps("no/such/folder")
    []
    """
    return sorted(int(path.name) for path in Path(folder).glob("*/") if path.name.isdecimal())


def latest_step(folder: str | os.PathLike[str]) -> int | None:
    """Return the latest complete checkpoint's step, or None where there is none.

    >>> latest_step("no/such/folder") is None
    True
    """
    return max(steps(folder), default=None)


def _leaves(tree: PyTree) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in flat]
    leaves = dict(named)
    if all(map(_is_empty, leaves.values())):
        raise ValueError("expected a tree that holds numbers, got one without any: there is nothing to save")
    if len(leaves) < len(named):
        raise ValueError(f"got {len(named)} leaves with {len(leaves)} paths, expected one each: rename some")
    for path, leaf in named:
        if not isinstance(leaf, jax.Array) and np.asarray(leaf).dtype.kind in "OSUmM":
            raise TypeError(
                f"expected an array or a number at {path}, got a {type(leaf).__name__}: leave it out"
            )
    return leaves


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_empty(leaf: Any) -> bool:
    """Orbax refuses arrays without elements; only their kinds are kept."""
    return 0 in np.shape(leaf)


def _kinds(leaves: dict[str, Any]) -> dict[str, Any]:
    arrays = {p: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for p, leaf in leaves.items()}
    return {p: f"{x.dtype}[{','.join(map(str, x.shape))}]" for p, x in arrays.items()}


def _raw(leaf: Any) -> jax.Array | np.ndarray:
    """As Orbax takes it: where there are several processes, what each has of its own goes through NumPy."""
    raw = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    alone = isinstance(raw, jax.Array) and (jax.process_count() == 1 or not raw.is_fully_addressable)
    return raw if alone else np.asarray(raw)


def _target(raw: jax.Array | np.ndarray) -> jax.ShapeDtypeStruct | np.ndarray:
    """Arrays that jax may move are read through NumPy, so that they come back as free to move."""
    if isinstance(raw, jax.Array) and raw.committed:
        return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=raw.sharding)
    return np.empty(raw.shape, raw.dtype)


def _place(value: Any, leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array):
        return value
    value = value if isinstance(value, jax.Array) else jnp.array(value)
    return jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else value


def _check_new(folder: Path, step: int, keep: int) -> None:
    if step < 0 or keep < 1:
        raise ValueError(f"expected step >= 0 and keep >= 1, got step {step} and keep {keep}")
    latest = latest_step(folder)
    if latest is not None and latest >= step:
        raise ValueError(
            f"cannot save step {step}: {folder} already holds step {latest}; "
            "restore that one, or use another folder"
        )


def _find(folder: Path, step: int | None) -> Path:
    present = steps(folder)
    if not present or (step is not None and step not in present):
        wanted = "a checkpoint" if step is None else f"step {step}"
        raise FileNotFoundError(
            f"expected {wanted} in {folder}, found steps {present}; save one first, or start a new run"
        )
    return folder / str(present[-1] if step is None else step)


def _check_same_model(path: Path, found: dict[str, str], expected: dict[str, str]) -> None:
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"checkpoint {path} is of another model: at {name} it holds {found.get(name, 'nothing')}, "
                f"expected {expected.get(name, 'nothing')}; use the options of the run that wrote it, or "
                "another folder"
            )


def _check_sums(expected: dict[str, str], found: dict[str, str]) -> None:
    for name in found:
        if found[name] != expected.get(name):
            raise ValueError(f"at {name} the checksum is {found[name]}, expected {expected.get(name)}")


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        older = [step for step in steps(path.parent) if step < int(path.name)]
        remedy = f"delete that folder to go back to step {older[-1]}" if older else "start a new run"
        raise ValueError(
            f"checkpoint {path} is damaged, or not of jsage: {remedy}. Cause: {error!r}"
        ) from error


def _write_failure(folder: Path, step: int, arrays: dict[str, Any], error: Exception) -> str:
    latest = latest_step(folder)
    kept = "there is no earlier one" if latest is None else f"step {latest} is intact"
    megabytes = sum(array.nbytes for array in arrays.values()) / 1e6
    return (
        f"could not write checkpoint {step} ({megabytes:.1f} MB) to {folder}; {kept}. Free some space there, "
        f"or use another folder, and resume. Cause: {error}"
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Process 0 holds the folder's lock."""
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, inside=True) if jax.process_index() == 0 else nullcontext():
        yield


def _sweep(folder: Path) -> None:
    """Remove what a killed or failed run left unfinished, and what is no longer kept: process 0 does."""
    if jax.process_index() == 0:
        for path in folder.glob("*/"):
            if path.name == _DELETED or ocp.utils.is_tmp_checkpoint(path):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _manager(folder: Path, keep: int | None = None) -> Iterator[ocp.CheckpointManager]:
    """Orbax without its log: it prints whole tracebacks of errors that it also raises. `keep`: it writes."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(keep),
        todelete_subdir=_DELETED,
        create=keep is not None,
        read_only=keep is None,
        enable_async_checkpointing=False,
        save_root_metadata=False,
    )
    try:
        with _open(folder, options) as manager:
            yield manager
    finally:
        logger.setLevel(level)


def _open(folder: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    """Orbax looks at every checkpoint that it lists, and another process may delete one meanwhile."""
    while True:
        present = steps(folder)
        try:
            return ocp.CheckpointManager(folder, options=options)
        except FileNotFoundError:
            if steps(folder) == present:
                raise
