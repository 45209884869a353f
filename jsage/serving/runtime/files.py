"""The files of an artefact, each held against its checksum."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from .checks import dtype_of
from .embedder import Artifact
from .meta import check_meta
from .operations import check_dimensions, check_operations

FORMAT, VERSION = "jsage artefact", 3
META, PARAMS = "meta.json", "params.npz"


def load(path: str | Path) -> "Artifact":
    """Read an artefact and hold every file against its checksum; nothing is compiled yet.

    An artefact is a program: load those that you trust. Checksums tell damage, not who wrote it; what the
    programs may do is held against a list, but jax was not written to run what an enemy made.

    Raises FileNotFoundError for a missing file, ValueError for one that is corrupt or truncated, for an
    artefact of another format or a newer jax, for one that was not exported for this platform, and for
    programs with operations that no export of jsage has. Raises ImportError without flatbuffers, which
    reads the programs.

    >>> import tempfile
    >>> load(tempfile.mkdtemp())
    Traceback (most recent call last):
    FileNotFoundError: ... is missing: ... is not an artefact (see jsage.export)
    """
    path = Path(path)
    meta = _read_meta(path / META)
    files = {name: _read(path / name, entry) for name, entry in meta["files"].items()}
    here = export.default_export_platform()
    if here not in meta["platforms"]:
        raise ValueError(
            f"{path} was exported for {', '.join(meta['platforms'])}, but jax runs on {here} here: export it "
            f"with platforms=({here!r},), or set JAX_PLATFORMS"
        )
    programs = {
        (entry["function"], entry["size"]): _program(meta, entry, files[entry["file"]])
        for entry in meta["programs"]
    }
    return Artifact(meta, _params(meta, files[PARAMS]), programs)


def described(arrays: Mapping[Any, Any]) -> dict[Any, dict[str, str]]:
    """Shapes and dtypes as `meta.json` has them.

    >>> described({"x": np.zeros((2, 3), np.int32)})
    {'x': {'shape': '2, 3', 'dtype': 'int32'}}
    """
    return {
        name: {"shape": ", ".join(map(str, array.shape)), "dtype": array.dtype.name}
        for name, array in arrays.items()
    }


def checksum(described: dict) -> str:
    """The SHA-256 of a JSON object, whatever its layout in the file.

    >>> checksum({"a": 1, "b": 2}) == checksum({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _program(meta: dict, entry: dict, data: bytes) -> export.Exported:
    """A program, once it is known that this jax reads it and that it takes what `meta` says."""
    origin = f"{entry['file']} was exported with jax {meta['versions']['jax']}"
    remedy = "install that jax, or export it again"
    try:
        check_dimensions(data)
        exported = export.deserialize(bytearray(data))
    except ImportError as error:
        raise ImportError("exported programs are read by flatbuffers: pip install flatbuffers") from error
    except Exception as error:
        raise ValueError(f"{origin}, which jax {jax.__version__} cannot read ({error}): {remedy}") from error
    version, newest = exported.calling_convention_version, export.maximum_supported_calling_convention_version
    oldest = export.minimum_supported_calling_convention_version
    if not oldest <= version <= newest:
        raise ValueError(
            f"{origin} (convention {version}), but jax {jax.__version__} reads {oldest} .. {newest}: {remedy}"
        )
    if _taken(exported) != _promised(meta, entry):
        raise ValueError(f"{entry['file']} is not the program that {META} describes: export it again")
    try:
        check_operations(exported)
    except Exception as error:
        raise ValueError(f"{entry['file']} is no program of jsage's: {error}: export it again") from error
    return exported


def _taken(exported: export.Exported) -> Any:
    """Shapes and dtypes of what a program takes and gives; None where it takes something else."""
    try:
        params, tables, inputs = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0]
        given = described(dict(enumerate(exported.out_avals)))
        taken = described(dict(enumerate(params))), described(tables), described(inputs)
    except (ValueError, TypeError, AttributeError, IndexError):
        return None
    return *taken, given


def _promised(meta: dict, entry: dict) -> Any:
    """The same, as `meta` says."""
    specs = [{name: spec[name] for name in ("shape", "dtype")} for spec in meta["params"]]
    output = {"shape": f"{entry['size']}, {meta['output']['width']}", "dtype": meta["output"]["dtype"]}
    return dict(enumerate(specs)), meta["tables"], entry["inputs"], {0: output}


def _params(meta: dict, data: bytes) -> list[jax.Array]:
    """The parameters, as `meta` lists them."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:
        raise ValueError(f"{PARAMS} holds no arrays ({error!r}): export it again") from error
    expected, params = {spec["name"]: spec for spec in meta["params"]}, []
    if arrays.keys() != expected.keys():
        names = sorted(arrays.keys() ^ expected.keys())
        raise ValueError(
            f"{PARAMS} must hold what {META} lists, got a difference in {names}: export it again"
        )
    for name, spec in expected.items():
        array, dtype = arrays[name], dtype_of(spec["dtype"])
        array = array.view(dtype) if dtype == jnp.bfloat16 and array.dtype == np.uint16 else array
        found, wanted = described({name: array})[name], {"shape": spec["shape"], "dtype": spec["dtype"]}
        if found != wanted:
            raise ValueError(f"{name} in {PARAMS} must be {wanted}, got {found}: export it again")
        params.append(jax.device_put(array))
    return params


def _read_meta(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not an artefact (see jsage.export)")
    try:
        whole = json.loads(path.read_bytes())
        meta, expected = whole["artefact"], whole["sha256"]
        form, version = meta["format"], meta["version"]
        found = checksum(meta)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        text = repr(error)[:200]
        raise ValueError(f"{path} is corrupt or no artefact's: {text}: export it again") from error
    if form != FORMAT or type(version) is not int:
        raise ValueError(
            f"{path} is no {FORMAT}'s, but says {str(form)[:40]!r}, version {str(version)[:40]!r}"
        )
    if version != VERSION:
        remedy = "use a newer one" if version > VERSION else "export it again"
        raise ValueError(f"{path} has version {version}, but this loader reads {VERSION}: {remedy}")
    if found != expected:
        raise ValueError(f"{path} is corrupt: its SHA-256 is not the one it names: export it again")
    try:
        check_meta(meta)
    except ValueError as error:
        raise ValueError(f"{path} is not as an export writes it: {error}: export it again") from error
    return meta


def _read(path: Path, entry: dict) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, but {META} lists it: export it again")
    data = path.read_bytes()
    if len(data) != entry["bytes"]:
        raise ValueError(
            f"{path} is truncated or not the file that {META} lists: expected {entry['bytes']} bytes, "
            f"got {len(data)}: export it again"
        )
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{path} is corrupt: its SHA-256 is not the one in {META}: export it again")
    return data
