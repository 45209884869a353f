"""Artefacts that no export wrote: each is refused as ValueError or FileNotFoundError, at once and by name."""

import dataclasses
import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsage.graph import from_edges
from jsage.serving import export, runtime
from jsage.serving.runtime.files import META, checksum

GRAPH, FEATURES = from_edges([1, 2], [0, 0], num_nodes=3), np.eye(3, dtype=np.float32)
PLAN = export.Plan(fanouts=(2,), sizes=(2,), new_sizes=(1,), new_edges=2)


def apply(variables, h, blocks):
    return variables["scale"] * blocks[0].sum(h)


def save(path: Path, apply: Callable = apply) -> None:
    export.save(path, apply, {"scale": jnp.float32(10)}, GRAPH, FEATURES, PLAN)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "artefact"
    save(path)
    return path


@pytest.fixture
def copy(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "artefact"))


def rewrite(path: Path, change: Callable[[dict], Any]) -> None:
    """Change the metadata and make its checksum right."""
    meta = json.loads((path / META).read_text())["artefact"]
    change(meta)
    (path / META).write_text(json.dumps({"sha256": checksum(meta), "artefact": meta}))


def put(path: Path, name: str, data: bytes) -> None:
    """Another content of a file, with its own checksum."""
    (path / name).write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    rewrite(path, lambda meta: meta["files"].update({name: entry}))


def put_program(path: Path, **changes: Any) -> None:
    """Another first program, with its checksums."""
    file = path / "embed-2.exported"
    exported = jax.export.deserialize(bytearray(file.read_bytes()))
    put(path, file.name, bytes(dataclasses.replace(exported, **changes).serialize()))


def at(*keys: Any, value: Any) -> Callable[[dict], None]:
    """A change of one entry; `value` is a function of the old one if it is one."""

    def change(meta: dict) -> None:
        for key in keys[:-1]:
            meta = meta[key]
        meta[keys[-1]] = value(meta[keys[-1]]) if callable(value) else value

    return change


def without(*keys: Any) -> Callable[[dict], None]:
    return lambda meta: ([meta := meta[key] for key in keys[:-1]] and None) or meta.pop(keys[-1])


ODD: dict[str, tuple[Callable[[dict], Any], str]] = {
    "no versions": (lambda m: m.pop("versions"), "the artefact must have versions, got"),
    "no jax": (at("versions", value={}), r"versions must have jax, got \[\]"),
    "a number for jax": (at("versions", "jax", value=3), "versions.jax must be a str, got 3"),
    "no fanouts": (lambda m: m.pop("fanouts"), "must have fanouts"),
    "a fanout of text": (at("fanouts", value=["2"]), r"fanouts\[0\] must be a int, got '2'"),
    "a fanout of truth": (at("fanouts", value=[True]), r"fanouts\[0\] must be a int, got True"),
    "a fanout of 0": (at("fanouts", value=[0]), "must be positive, got 0"),
    "no new_edges": (lambda m: m.pop("new_edges"), "must have new_edges"),
    "null new_edges": (at("new_edges", value=None), "new_edges must be a int, got None"),
    "negative new_edges": (at("new_edges", value=-2), "must be positive, got -2"),
    "other new_edges": (at("new_edges", value=3), "the inputs of embed_new-1.exported must be"),
    "no platforms": (lambda m: m.pop("platforms"), "must have platforms"),
    "one platform": (at("platforms", value="cpu"), "platforms must be a list, got 'cpu'"),
    "platforms of numbers": (at("platforms", value=[1]), r"platforms\[0\] must be a str, got 1"),
    "none of the platforms": (at("platforms", value=[]), "was exported for , but jax runs on cpu"),
    "no about": (lambda m: m.pop("about"), "must have about"),
    "a list about": (at("about", value=[]), r"about must be a dict, got \[\]"),
    "no tables": (lambda m: m.pop("tables"), "must have tables"),
    "a list of tables": (at("tables", value=[]), r"tables must be a dict, got \[\]"),
    "no table of features": (
        lambda m: m["tables"].pop("features"),
        r"tables must be those with features, got \[\]",
    ),
    "no features": (lambda m: m.pop("features"), "must have features"),
    "words of a table": (
        at("features", "words", value=2),
        "must be those with features_start, features_length",
    ),
    "a negative width": (at("features", "width", value=-1), "features must be of a width, and words"),
    "negative words": (at("features", "words", value=-1), "features must be of a width, and words"),
    "a table too many": (at("tables", "x", value={"shape": "", "dtype": "int32"}), "the shape of x must be"),
    "a table that is text": (at("tables", "indptr", value="x"), "tables.indptr must be a dict, got 'x'"),
    "a table without shape": (lambda m: m["tables"]["indptr"].pop("shape"), "indptr must have shape"),
    "a vector of features": (at("tables", "features", "shape", value="num_nodes"), "the shape of features"),
    "a symbol of features": (at("tables", "features", "shape", value="num_nodes, w"), "got 'num_nodes, w'"),
    "features of width 0": (at("tables", "features", "shape", value="num_nodes, 0"), "must be like"),
    "another width": (at("tables", "features", "shape", value="num_nodes, 4"), "must be like num_nodes, "),
    "other features": (
        lambda m: (m["features"].update(width=4), m["tables"]["features"].update(shape="num_nodes, 4")),
        "the inputs of embed_new-1",
    ),
    "2,000 symbols": (
        at("tables", "indices", "shape", value=" + ".join(f"n{i}" for i in range(2000))),
        r"the shape of indices must be like num_edges, got 'n0 \+ n1",
    ),
    "no such dtype": (at("tables", "indptr", "dtype", value="int33"), "the dtype of indptr must be one of"),
    "a dtype of objects": (at("tables", "indptr", "dtype", value="object"), "the dtype of indptr"),
    "two dtypes": (at("params", 0, "dtype", value="f4,i4"), "the dtype of scale .* got 'f4,i4'"),
    "a dtype with a comma": (at("params", 0, "dtype", value="f4,"), "the dtype of scale"),
    "no params": (lambda m: m.pop("params"), "must have params"),
    "params of another shape": (at("params", 0, "shape", value="2"), "is not the program that meta.json"),
    "params that are numbers": (at("params", value=[1]), r"params\[0\] must be a dict, got 1"),
    "a parameter without name": (lambda m: m["params"][0].pop("name"), r"params\[0\] must have name"),
    "no programs": (lambda m: m.pop("programs"), "must have programs"),
    "none of the programs": (
        at("programs", value=[]),
        "functions must be embed or embed_at, and perhaps",
    ),
    "embed_new alone": (at("programs", value=lambda p: p[1:]), r"got \['embed_new'\]"),
    "a program twice": (at("programs", value=lambda p: p + p), "programs must be of different sizes"),
    "another function": (at("programs", 0, "function", value="f"), "functions must be embed"),
    "a size of text": (at("programs", 0, "size", value="2"), r"programs\[0\].size must be a int, got '2'"),
    "another size": (at("programs", 0, "size", value=4), "the inputs of embed-2.exported must be"),
    "a size of 0": (at("programs", 0, "size", value=0), "must be positive, got 0"),
    "a program without file": (lambda m: m["programs"][0].pop("file"), r"programs\[0\] must have file"),
    "a file not listed": (at("programs", 0, "file", value="x"), "files must be to list"),
    "another program's file": (
        at("programs", 0, "file", value="embed_new-1.exported"),
        "embed_new-1.exported is not the program",
    ),
    "no inputs": (lambda m: m["programs"][0].pop("inputs"), r"programs\[0\] must have inputs"),
    "inputs of text": (at("programs", 0, "inputs", value="x"), r"inputs must be a dict, got 'x'"),
    "other inputs": (at("programs", 0, "inputs", value={}), "the inputs of embed-2.exported must be"),
    "no output": (lambda m: m.pop("output"), "must have output"),
    "another width of output": (
        at("output", "width", value=4),
        "is not the program that meta.json describes",
    ),
    "output of width 0": (at("output", "width", value=0), "must be positive, got 0"),
    "output of another dtype": (at("output", "dtype", value="int32"), "is not the program that"),
    "no files": (lambda m: m.pop("files"), "must have files"),
    "files in a list": (at("files", value=[]), r"files must be a dict, got \[\]"),
    "no parameters among the files": (lambda m: m["files"].pop("params.npz"), "files must be to list"),
    "a file without bytes": (lambda m: m["files"]["params.npz"].pop("bytes"), "must have bytes"),
    "a file of half a byte": (at("files", "params.npz", "bytes", value=0.5), "bytes must be a int, got 0.5"),
    "a file without checksum": (lambda m: m["files"]["params.npz"].pop("sha256"), "must have sha256"),
    "a file above": (at("files", "../x", value={"bytes": 0, "sha256": ""}), r"a file must be in the folder"),
    "a file anywhere": (at("files", "/etc/passwd", value={"bytes": 0, "sha256": ""}), "got '/etc/passwd'"),
    "a file that is hidden": (at("files", ".x", value={"bytes": 0, "sha256": ""}), "got '.x'"),
    "a file's name with NUL": (at("files", "a\0b", value={"bytes": 0, "sha256": ""}), "a file must be"),
    "version 2.0": (at("version", value=2.0), "is no jsage artefact's, but says .*version '2.0'"),
    "version true": (at("version", value=True), "version 'True'"),
    "a long format": (at("format", value="x" * 999), f"says '{'x' * 40}', version"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_metadata(copy, case):
    change, message = ODD[case]
    rewrite(copy, change)
    with pytest.raises(ValueError, match=message) as caught:
        runtime.load(copy)
    assert re.search("export it|expected|exported for|no jsage", str(caught.value))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe{",
        b"[" * 100_000,
        b'{"sha256": "", "artefact": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"sha256": "", "artefact": {"format": "jsage artefact", "version": 3, "x": '
        + b"[" * 900
        + b"]" * 900
        + b"}}",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b'{"artefact": {}, "sha256": 3}',
        b'{"artefact": [], "sha256": ""}',
        b'{"artefact": {"format": "jsage artefact", "version": 3}, "sha256": NaN}',
        b"9" * 5000,
    ],
    ids=range(13),
)
def test_metadata_that_are_none(copy, text):
    (copy / META).write_bytes(text)
    with pytest.raises(ValueError, match=r"meta.json is (corrupt|no)"):
        runtime.load(copy)


def test_every_entry_removed_or_replaced(good, copy):
    """Whatever is odd about it, no other error comes out, and nothing that is wrong comes in."""
    original = (good / META).read_bytes()
    artefact = json.loads(original)["artefact"]

    def places(value: Any, keys: tuple = ()):
        yield from [keys] if keys else []
        if isinstance(value, dict | list):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from places(item, (*keys, key))

    random, refused, turns = np.random.default_rng(0), 0, 0
    values = [None, True, -1, 2.5, "", "x", [], {}, [None], {"": 1}, 10**30]
    spots = list(places(artefact))
    for spot in random.permutation(len(spots))[:60]:
        turns += 1
        rewrite(copy, at(*spots[spot], value=values[random.integers(len(values))]))
        try:
            runtime.load(copy)
        except (ValueError, FileNotFoundError):
            refused += 1
        (copy / META).write_bytes(original)
    assert refused > turns / 2  # some entries are for the reader alone


def test_files_cut_anywhere_with_checksums_that_fit(good, copy):
    original = (good / META).read_bytes()
    for name in ("params.npz", "embed-2.exported"):
        data = (good / name).read_bytes()
        for length in (0, 1, 40, len(data) // 3, len(data) * 9 // 10):
            put(copy, name, data[:length])
            with pytest.raises(ValueError, match=f"{name} .*export it again"):
                runtime.load(copy)
        (copy / name).write_bytes(data)
        (copy / META).write_bytes(original)


def parameters(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def huge() -> bytes:
    """A file whose header promises more than there is memory."""
    header = io.BytesIO()
    entry = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
    np.lib.format.write_array_header_1_0(header, entry)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("scale.npy", header.getvalue())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (parameters(), r"params.npz must hold what meta.json lists, got a difference in \['scale'\]"),
        (parameters(scale=np.float32(1), more=1), r"got a difference in \['more'\]"),
        (parameters(scale=np.zeros(2, np.float32)), "scale in params.npz must be .* got .*'shape': '2'"),
        (parameters(scale=np.float64(1)), "scale in params.npz must be .*float32.* got .*float64"),
        (parameters(scale=np.array([None], object)), "params.npz holds no arrays .*allow_pickle"),
        (huge(), "params.npz holds no arrays"),
        (b"PK\x03\x04", "params.npz holds no arrays"),
    ],
)
def test_odd_parameters(copy, data, message):
    put(copy, "params.npz", data)
    with pytest.raises(ValueError, match=f"{message}.*export it again"):
        runtime.load(copy)


class TestPrograms:
    def foreign(self, path: Path, call: Callable) -> None:
        """A program of the right inputs and outputs that calls something else."""
        file = path / "embed-2.exported"
        exported = jax.export.deserialize(bytearray(file.read_bytes()))
        args, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        checks = [
            jax.export.DisabledSafetyCheck.custom_call(name)
            for name in ("evil", "xla_ffi_python_cpu_callback")
        ]
        made = jax.export.export(jax.jit(call), platforms=("cpu",), disabled_checks=checks)(*args)
        put_program(path, mlir_module_serialized=made.mlir_module_serialized)

    def test_a_foreign_custom_call(self, copy):
        """Called with a pointer that its maker chose, it ends the process."""
        out = jax.ShapeDtypeStruct((2, 3), jnp.float32)
        self.foreign(copy, lambda params, tables, inputs: jax.ffi.ffi_call("evil", out)(params[0]))
        message = r"embed-2.exported is no program of jsage's: expected arithmetic .* got custom_call @evil"
        with pytest.raises(ValueError, match=message):
            runtime.load(copy)

    def test_one_that_is_hidden_in_a_loop(self, copy):
        out = jax.ShapeDtypeStruct((2, 3), jnp.float32)

        def call(params, tables, inputs):
            def body(_, x):
                return jax.ffi.ffi_call("evil", out)(x)

            return jax.lax.fori_loop(0, 3, body, jnp.zeros((2, 3)))

        self.foreign(copy, call)
        with pytest.raises(ValueError, match="got custom_call @evil"):
            runtime.load(copy)

    def test_an_operation_that_reaches_out(self, copy):
        from jax._src.lib import _jax

        text = jax.export.deserialize(bytearray((copy / "embed-2.exported").read_bytes())).mlir_module()
        begin = re.search(r"func.func public @main\(.*\{\n", text)
        assert begin
        token = "%t = stablehlo.create_token : !stablehlo.token\n"
        feed = '%o = "stablehlo.outfeed"(%t) : (!stablehlo.token) -> !stablehlo.token\n'
        text = text[: begin.end()] + token + feed + text[begin.end() :]
        put_program(copy, mlir_module_serialized=_jax.mlir.serialize_portable_artifact(text, "1.0.0"))
        with pytest.raises(ValueError, match="got create_token, outfeed"):
            runtime.load(copy)

    def test_a_dimension_of_2000_symbols(self, copy, monkeypatch):
        """jax would read it for minutes."""
        text, create = " + ".join(f"n{i}" for i in range(2000)), flatbuffers.Builder.CreateString

        def long(builder, given, *more):
            return create(builder, text if given == "num_nodes + 1" else given, *more)

        monkeypatch.setattr(flatbuffers.Builder, "CreateString", long)
        put_program(copy)
        began = time.perf_counter()
        with pytest.raises(ValueError, match=r"a dimension has at most 32 characters, got 1\d+: n0 \+ n1"):
            runtime.load(copy)
        assert time.perf_counter() - began < 5

    def test_a_model_that_calls_a_library_is_not_exported(self, tmp_path):
        def called(variables, h, blocks):
            rows = apply(variables, h, blocks)
            return rows @ jnp.linalg.cholesky(jnp.eye(3))

        with pytest.raises(
            ValueError, match=r"no loader would take embed-2.exported: .* @lapack_spotrf_ffi: write"
        ):
            save(tmp_path / "one", called)
        assert list(tmp_path.iterdir()) == []


def test_loading_writes_nothing(copy):
    def seen():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in copy.parent.rglob("*")}

    before = seen()
    runtime.load(copy).place({"indptr": GRAPH.indptr, "indices": GRAPH.indices, "features": FEATURES})
    assert seen() == before


KILLED = """
import os, sys, numpy as np, jax.numpy as jnp
from pathlib import Path
from jsage.graph import from_edges
from jsage.serving import export
os.getpid = lambda: 1
write, left = export._write, int(sys.argv[2])
def _write(path, data):
    global left
    write(path, data)
    left -= 1
    if not left:
        print("here", flush=True)
        sys.stdin.read()
export._write = _write
graph, features = from_edges([1, 2], [0, 0], num_nodes=3), np.eye(3, dtype=np.float32)
apply = lambda variables, h, blocks: variables["scale"] * blocks[0].sum(h)
plan = export.Plan(fanouts=(2,), sizes=(2,), new_sizes=(1,), new_edges=2)
export.save(sys.argv[1], apply, {"scale": jnp.float32(10)}, graph, features, plan)
"""


@pytest.mark.slow
@pytest.mark.parametrize("files", [1, 3, 10])
def test_a_kill_blocks_no_later_run_and_leaves_nothing_for_ever(tmp_path, files):
    """Under the same process id, as in a container."""
    path = tmp_path / "artefact"
    command = [sys.executable, "-c", KILLED, str(path), str(files)]
    writer = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert writer.stdout
    assert writer.stdout.readline() == b"here\n"
    try:
        with pytest.raises(BlockingIOError, match="artefact is being written already, by "):
            save(path)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".artefact.lock", ".artefact.new"]
    save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["artefact"]
    runtime.load(path)
