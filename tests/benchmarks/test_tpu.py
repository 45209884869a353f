"""The training step in the hands of the real TPU compiler, and the reader of compiled programs.

The compiler comes with `pip install 'jax[tpu]'`; without it only the reader is tested.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import ahead, hlo, sharded

ROOT = Path(__file__).parents[2]
TABLES = {100 * 128, 100, 101, 700}

OFFENDERS = {
    "copy": ("%c = f32[100,128]{0,1:T(8,128)} copy(%x)", ["copy f32[100,128]"]),
    "copy of a flat table": ("%c = f32[12800]{0} copy(%x)", ["copy f32[12800]"]),
    "transpose": ("%t = f32[128,100]{1,0} transpose(%x), dimensions={1,0}", ["transpose f32[128,100]"]),
    "convert": ("%c = bf16[100,128]{1,0:T(8,128)(2,1)} convert(%x)", ["convert bf16[100,128]"]),
    "convert of the labels": ("ROOT %c = f32[100]{0} convert(%x)", ["convert f32[100]"]),
    "asynchronous": (
        "%s = (f32[100,128]{1,0}, f32[100,128]{0,1}, u32[]{:S(2)}) copy-start(%x)\n"
        "  %d = f32[100,128]{1,0} copy-done(%s)",
        ["copy-done f32[100,128]"],
    ),
    "fusion": ("%f = f32[100,128]{1,0} fusion(%x), kind=kLoop, calls=%inside", ["fusion f32[100,128]"]),
    "one of a tuple": (
        "%f = (s32[], /*index=1*/f32[100,128]{1,0}) fusion(%x), kind=kLoop, calls=%inside",
        ["fusion f32[100,128]"],
    ),
    "more than any table": ("%p = f32[104,128]{1,0} pad(%x, %y), padding=0_4x0_0", ["pad f32[104,128]"]),
    "scatter": (
        "%s = f32[9,5]{1,0} scatter(%x, %y, %z), to_apply=%inside",
        ["scatter f32[9,5]"],
    ),
    "scatter of many into few": (
        "%u = f32[9,5]{1,0} add(%x, %x)\n  %s = f32[2]{0} scatter(%x, %y, %u), to_apply=%inside",
        ["scatter f32[2]"],
    ),
    "sort": ("%s = (u32[41]{0}, s32[41]{0}) sort(%x, %y), dimensions={0}", ["sort u32[41]"]),
    "a library's sort": (
        '%s = u32[41]{0} custom-call(%x), custom_call_target="__cub$DeviceRadixSortKeys"',
        ["__cub$DeviceRadixSortKeys u32[41]"],
    ),
}
HARMLESS = {
    "an argument": "%p = f32[100,128]{1,0} parameter(0)",
    "carried": "%w = (f32[100,128]{1,0}, s32[]) while(%t), condition=%inside, body=%inside",
    "taken from a tuple": "%g = f32[100,128]{1,0} get-tuple-element(%w), index=0",
    "a part": "%c = f32[90,128]{0,1} copy(%x)",
    "small": "%s = f32[8,5]{1,0} scatter(%x, %y, %z), to_apply=%inside",
    "on chip": "%d = s32[101]{0:T(1024)S(1)} copy-done(%s)",
}


def program(line: str, inside: str = "%q = f32[] parameter(0)") -> str:
    called = f"%inside (q: f32[]) -> f32[] {{\n  {inside}\n}}"
    return f"HloModule m\n\n{called}\n\nENTRY %main (x: f32[]) -> f32[] {{\n  {line}\n}}\n"


@pytest.mark.parametrize("kind", OFFENDERS)
def test_the_reader_sees_an_offender(kind):
    line, expected = OFFENDERS[kind]
    assert hlo.offenders(program(line), TABLES, limit=40) == expected


@pytest.mark.parametrize("kind", HARMLESS)
def test_the_reader_lets_the_rest_pass(kind):
    assert hlo.offenders(program(HARMLESS[kind]), TABLES, limit=40) == []


def test_inside_a_fusion_only_scatters_and_sorts_count():
    fusion = "%f = f32[9,128]{1,0} fusion(%x), kind=kLoop, calls=%inside"
    converted = "%c = bf16[100,128]{1,0} convert(%q)"
    assert hlo.offenders(program(fusion, converted), TABLES, 40) == []
    assert hlo.offenders(program(fusion, OFFENDERS["scatter"][0]), TABLES, 40) == ["scatter f32[9,5]"]
    called = "%f = f32[9,128]{1,0} call(%x), to_apply=%inside"
    assert hlo.offenders(program(called, converted), TABLES, 40) == ["convert bf16[100,128]"]


def test_tables_that_are_kept_on_chip_are_named():
    assert hlo.staged(program(HARMLESS["on chip"]), TABLES) == ["copy-done s32[101]"]
    assert hlo.staged(program(OFFENDERS["copy"][0]), TABLES) == []


def test_the_reader_reads_what_this_jax_writes():
    @jax.jit
    def run(table, ids):
        return jnp.sort(table[:, 0]), table.T.copy(), jnp.zeros(5000).at[ids].add(1.0)

    shapes = jax.ShapeDtypeStruct((4000, 64), jnp.float32), jax.ShapeDtypeStruct((10,), jnp.int32)
    found = hlo.offenders(run.lower(*shapes).compile().as_text(), {4000 * 64}, limit=3000)
    assert any(one.startswith("sort f32[4000]") for one in found), found
    assert any(one.endswith("f32[64,4000]") for one in found), found


def test_sizes_come_from_a_graph_or_from_the_command_line():
    options = ahead.options("tpu", "What it does.", lanes=128)
    first, *others = ahead.cases(options.parse_args([]))
    assert (first.num_nodes, first.width, first.num_classes) == (2_449_029, 128, 47)
    assert 1 + len(others) == 2 * len((*ahead.AGGREGATORS, *ahead.CONVOLUTIONS))
    assert 2_449_029 * 128 in first.table_sizes
    assert (first.logits, first.slots) == (1024 * 47, 26_624 * 10 * 128)
    sizes, one = ["--num-nodes", "2e6", "--num-edges", "3e6", "--lanes", "1"], ["--aggregators", "max"]
    (case,) = ahead.cases(options.parse_args([*sizes, *one, "--dtypes", "bfloat16"]))
    assert case == ahead.Case("max", "bfloat16", 2_000_000, 3_000_000, 100, 47)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-nodes", "3e9"], r"32 bits, got 3000000000: stay below 2\^31"),
        (["--num-edges", "1.2e9", "--double"], r"32 bits, got 2400000000"),
        (["--aggregators", "median"], "no aggregator 'median': expected some of mean, sum"),
        (["--graph", "cora"], "no sizes of cora: expected one of tiny, arxiv"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        list(ahead.cases(ahead.options("tpu", "What it does.", lanes=128).parse_args(arguments)))


COLLECTIVES = """HloModule m

%adds (q: f32[]) -> f32[] {
  %q = f32[] parameter(0)
}

%round (p: s32[8,10]) -> s32[8,10] {
  %p = s32[8,10]{1,0:T(8,128)} parameter(0)
  ROOT %more = s32[8,10]{1,0:T(8,128)} all-to-all(%p), channel_id=1, dimensions={0}
}

%step (r: bf16[8,4]) -> bf16[8,4] {
  %r = bf16[8,4]{1,0} parameter(0)
  %out = bf16[8,4]{1,0} all-to-all(%r), channel_id=2, dimensions={0}
  %g = (f32[3]{0}, f32[5]{0}) all-reduce(%a, %b), to_apply=%adds
  %a = f32[3]{0} add(%r, %r)
  %b = f32[5]{0} add(%r, %r)
  ROOT %w = s32[8,10]{1,0} while(%out), condition=%adds, body=%round
}

ENTRY %main (x: f32[]) -> f32[] {
  %x = f32[2]{0} parameter(0)
  %loop = f32[2]{0} while(%x), condition=%adds, body=%step
  %s = (f32[2]{0}, f32[2]{0}) all-gather-start(%x), to_apply=%adds
  ROOT %d = f32[2]{0} all-gather-done(%s)
}
"""


def test_collectives_are_counted_with_their_bytes_and_the_loops_that_they_are_in():
    assert hlo.collectives(COLLECTIVES) == [
        ("all-to-all", 8 * 4 * 2, 1),
        ("all-reduce", 4 * (3 + 5), 1),
        ("all-to-all", 8 * 128 * 4, 2),  # in whole tiles
        ("all-gather", 8, 0),
    ]
    row = sharded.links(COLLECTIVES, "v5e:2x4", 8)
    assert row["collectives"] == {"all-gather": 1, "all-reduce": 1, "all-to-all": 2}
    assert row["collective_bytes"] == (64 + 2 * 32 + 4096) * 7 / 8
    assert row["round_bytes"] == 4096 * 7 / 8
    assert row["link_seconds"] == pytest.approx(row["collective_bytes"] / 200e9)
    assert row["bisection_seconds"] == pytest.approx(row["collective_bytes"] * 8 / 4 / 100e9)


@pytest.mark.parametrize(
    ("shape", "rate"), [("16x16", 1.6e12), ("4x4", 200e9), ("2x4", 100e9), ("8x16", 800e9)]
)
def test_the_bandwidth_between_halves_is_that_of_the_links_that_are_cut(shape, rate):
    assert sharded.bisection("v5e", shape) == rate


def test_tiles_are_of_the_last_axes_first():
    (one,) = hlo.instructions("  %c = bf16[8,9,5]{1,2,0:T(8,128)(2,1)} copy(%x)")
    assert one.arrays[0].padded == (8, 128, 8)
    assert one.arrays[0].bytes == 8 * 128 * 8 * 2
    (flag,) = hlo.instructions("  %c = pred[9]{0} copy(%x)")
    assert flag.arrays[0].bytes == 9


MESH = argparse.Namespace(
    graph=Path("products"),
    num_nodes=None,
    num_edges=None,
    num_features=256,
    num_cached=0,
    seeds=1024,
    lanes=128,
)
MESH.mesh, MESH.double, MESH.kinds, MESH.aggregators, MESH.dtypes = False, False, ("labels",), None, None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, False),
        ({"mesh": True}, True),
        ({"num_nodes": 2**31 - 1, "num_edges": 10}, False),
        ({"num_nodes": 3_000_000_000}, True),
        ({"num_edges": 2**31}, True),
    ],
)
def test_all_chips_share_a_graph_that_one_cannot_count(given, expected):
    assert sharded.wanted(argparse.Namespace(**(vars(MESH) | given))) == expected


def test_a_mesh_is_asked_for_one_program_unless_more_are_named():
    chosen = argparse.Namespace(**(vars(MESH) | {"num_nodes": 3_000_000_000, "num_edges": 18_000_000_000}))
    (case,) = sharded.cases(chosen, 256)
    assert (case.aggregator, case.dtype) == ("mean", "bfloat16")
    assert case.table_sizes == {11_718_750 * 256, 11_718_750, 11_718_751, 70_312_500}
    assert case.load.num_parameters == 2 * 256 * 256 + 256 + 2 * 256 * 47 + 47
    for change, message in (
        ({"kinds": ("links",)}, "trains on labels"),
        ({"aggregators": ("median",)}, "median"),
    ):
        with pytest.raises(ValueError, match=message):
            next(sharded.rows(argparse.Namespace(**(vars(chosen) | change)), [None] * 256, "v5e:16x16"))


def test_a_step_is_compiled_from_shapes_alone():
    chosen = argparse.Namespace(
        graph=Path("tiny"),
        num_nodes=2_000_000,
        num_edges=9_000,
        lanes=1,
        kinds=("labels",),
        aggregators=("mean",),
        dtypes=("float32",),
        double=True,
    )
    look = lambda text, case: {"offenders": hlo.offenders(text, case.table_sizes, case.logits)}  # noqa: E731
    (row,) = ahead.rows(chosen, jax.devices()[0], look, {"topology": "here"})
    assert row["argument_bytes"] > 2_000_000 * 16 * 4
    assert row["topology"] == "here"
    assert row["doubled_temp_bytes"] == row["temp_bytes"] > 0
    assert row["offenders"] == row["doubled_offenders"] == []


needs_compiler = pytest.mark.skipif(
    find_spec("libtpu") is None, reason="no TPU compiler: pip install 'jax[tpu]' brings it"
)


def compiled(tmp_path: Path, *arguments: str) -> dict:
    """The one row of the benchmark, in a process of its own: the compiler reads its settings at the start."""
    target = tmp_path / "tpu.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.tpu",
        "--topology",
        "v5e:2x2",
        "--json",
        str(target),
        *arguments,
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(target.read_text())["rows"]
    return row


@needs_compiler
def test_a_step_on_a_tpu_copies_no_table_and_its_memory_does_not_grow_with_the_graph(tmp_path):
    row = compiled(tmp_path, "--aggregators", "mean", "--dtypes", "float32", "--double")
    assert row["offenders"] == row["doubled_offenders"] == []
    assert row["doubled_temp_bytes"] == row["temp_bytes"] < 64e6
    assert row["argument_bytes"] > 2_449_029 * 128 * 4


@needs_compiler
def test_the_slots_that_won_are_kept_for_the_gradient_of_a_maximum(tmp_path):
    """If they are made again, a step takes 65 MB on a v6e."""
    row = compiled(tmp_path, "--topology", "v6e:2x2", "--aggregators", "max", "--dtypes", "float32")
    assert row["offenders"] == []
    assert row["temp_bytes"] < 50e6


@needs_compiler
def test_a_step_on_a_mesh_exchanges_rows_and_sums_gradients_and_does_no_more(tmp_path):
    """Tables too large for on-chip memory; few seeds, since sorting is what takes long to compile."""
    sizes = ["--mesh", "--num-nodes", "3e8", "--num-edges", "5e8", "--num-features", "128", "--seeds", "8"]
    row = compiled(tmp_path, *sizes, "--topology", "v5e:2x4")
    assert row["offenders"] == []
    assert set(row["collectives"]) == {"all-to-all", "all-reduce"}
    assert row["temp_bytes"] < 64e6
    assert row["argument_bytes"] == pytest.approx(row["billed_bytes"], rel=1e-4)
    assert row["collectives"]["all-to-all"] == 6  # ids out and answers back, of two hops and of the features
    sizes = [
        capacity * 8 * (4 + answer)
        for capacity, answer in zip(row["capacities"], (100, 40, 256), strict=True)
    ]
    assert sum(sizes) * 7 / 8 <= row["round_bytes"] < row["collective_bytes"] < 1.5 * sum(sizes) + 4e6
    assert row["link_seconds"] < row["bisection_seconds"]


@needs_compiler
def test_rows_that_are_not_whole_lanes_are_copied_in_every_step(tmp_path):
    row = compiled(tmp_path, "--aggregators", "gcn", "--dtypes", "float32", "--lanes", "1")
    assert "copy f32[2449029,100]" in row["offenders"]
    assert row["temp_bytes"] > 1e9


@needs_compiler
def test_a_step_on_links_keeps_their_edges_out_and_copies_no_table(tmp_path):
    """Binary searches in the rows and in the batch's own edges; alias tables; no labels."""
    arguments = "--kinds", "links", "--aggregators", "mean", "--dtypes", "float32", "--double"
    row = compiled(tmp_path, *arguments)
    assert row["offenders"] == row["doubled_offenders"] == []
    assert row["doubled_temp_bytes"] <= row["temp_bytes"] < 64e6
    assert row["argument_bytes"] > 2_449_029 * (128 + 3) * 4 + 134_500_000 * 4
