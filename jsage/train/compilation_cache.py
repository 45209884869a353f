"""The persistent compilation cache: a program that was compiled once is read back by later processes."""

import os
import tempfile
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


def enable(folder: str | Path | None = None) -> Path:
    """Keep every program that is compiled from now on in `folder`, and use those that are there; its path.

    JAX keeps nothing unless told to, and even then no program that compiled in under a second; this sets
    `jax_compilation_cache_dir` and lifts the limits. By default the folder is the one that JAX is set to
    already (`JAX_COMPILATION_CACHE_DIR`), or else `jsage/programs` in the user's cache folder
    (`XDG_CACHE_HOME`, `~/.cache`). A program is kept under a hash of its text, the compiler's version and
    the device. The folder grows without limit and may be deleted at any time. What is in it is run, so it
    is made for its owner alone: give none that others may write to.

    Raises OSError for a folder that cannot be made or written to.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     enable(f"{folder}/programs").name
    ...     _ = jax.jit(lambda x: x + 1)(1)
    ...     len([*Path(folder, "programs").glob("*-cache")]) > 0
    ...     disable()
    'programs'
    True
    """
    path = (
        Path(folder or jax.config.values["jax_compilation_cache_dir"] or _default()).expanduser().absolute()
    )
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise type(error)(
            f"{path} cannot hold compiled programs ({error.strerror}): pass a folder that can be written to"
        ) from error
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _use(str(path))
    return path


def disable() -> None:
    """Keep and use no programs from now on; the folder stays as it is.

    >>> disable()
    >>> jax.config.jax_compilation_cache_dir
    """
    _use(None)


def _use(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()  # JAX looks at its settings once, when it first compiles


def _default() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "jsage", "programs")
