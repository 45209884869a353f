"""The files of an artefact, each held against its checksum."""

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from .checks import dtype_of
from .embedder import Artefact

FORMAT, VERSION = "jsage artefact", 1
META, PARAMS = "meta.json", "params.npz"
CONSTRAINTS = ("num_nodes >= 1", "num_edges >= 1")


def load(path: str | Path) -> "Artefact":
    """Read an artefact and hold every file against its checksum; nothing is compiled yet.

    Raises FileNotFoundError for a missing file, ValueError for one that is corrupt or truncated, for an
    artefact of a newer format or jax, and for one that was not exported for this platform.

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
        (entry["function"], entry["size"]): _rebuild(meta, entry, files[entry["file"]])
        for entry in meta["programs"]
    }
    return Artefact(meta, _params(meta, files[PARAMS]), programs)


def arguments(meta: dict, entry: dict) -> tuple[list, dict, dict]:
    """The shapes and dtypes that a program takes: parameters, tables, inputs.

    >>> spec = {"shape": "2, num_nodes + 1", "dtype": "int32"}
    >>> arguments({"params": [], "tables": {}}, {"inputs": {"x": spec}})[2]["x"].shape
    (2, num_nodes + 1)
    """
    scope = export.SymbolicScope(CONSTRAINTS)

    def described(spec: dict) -> jax.ShapeDtypeStruct:
        shape = export.symbolic_shape(spec["shape"], scope=scope)
        return jax.ShapeDtypeStruct(shape, dtype_of(spec["dtype"]))

    both = meta["tables"], entry["inputs"]
    tables, inputs = ({name: described(spec) for name, spec in specs.items()} for specs in both)
    return [described(spec) for spec in meta["params"]], tables, inputs


def checksum(described: dict) -> str:
    """The SHA-256 of a JSON object, whatever its layout in the file.

    >>> checksum({"a": 1, "b": 2}) == checksum({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _rebuild(meta: dict, entry: dict, module: bytes) -> export.Exported:
    """The exported function of a StableHLO module.

    `Exported.deserialize` needs flatbuffers, which jax does not install. So an empty function of the same
    signature is exported here, and the module takes the place of its own.
    """
    version, newest = entry["calling_convention"], export.maximum_supported_calling_convention_version
    oldest = export.minimum_supported_calling_convention_version
    if not oldest <= version <= newest:
        raise ValueError(
            f"{entry['file']} was exported with jax {meta['versions']['jax']} (convention {version}), "
            f"but jax {jax.__version__} reads {oldest} .. {newest}: install that jax, or export it again"
        )
    output = jax.ShapeDtypeStruct((entry["size"], meta["output"]["width"]), dtype_of(meta["output"]["dtype"]))
    empty = jax.jit(lambda *_: jnp.zeros(output.shape, output.dtype))
    template = export.export(empty, platforms=meta["platforms"])(*arguments(meta, entry))
    return dataclasses.replace(
        template,
        fun_name=entry["file"],
        mlir_module_serialized=module,
        calling_convention_version=version,
        module_kept_var_idx=tuple(entry["kept"]),
        uses_global_constants=entry["global_constants"],
    )


def _params(meta: dict, data: bytes) -> list[jax.Array]:
    stored = np.load(io.BytesIO(data), allow_pickle=False)
    params = []
    for spec in meta["params"]:
        array, dtype = stored[spec["name"]], dtype_of(spec["dtype"])
        params.append(jax.device_put(array.view(dtype) if dtype == jnp.bfloat16 else array))
    return params


def _read_meta(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not an artefact (see jsage.export)")
    try:
        whole = json.loads(path.read_bytes())
        meta, expected = whole["artefact"], whole["sha256"]
        form, version = meta["format"], meta["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is corrupt or no artefact's: {error!r}: export it again") from error
    if form != FORMAT or not isinstance(version, int):
        raise ValueError(f"{path} is no {FORMAT}'s, but says {form!r}, version {version!r}")
    if version > VERSION:
        raise ValueError(
            f"{path} has version {version}, but this loader reads up to {VERSION}: use a newer one"
        )
    if checksum(meta) != expected:
        raise ValueError(f"{path} is corrupt: its SHA-256 is not the one it names: export it again")
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
