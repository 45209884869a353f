"""What a compiled program writes, read from its text (`compiled.as_text()`)."""

import re
from collections.abc import Collection, Iterator
from math import prod
from typing import NamedTuple

PASSES_ON = {"after-all", "bitcast", "call", "conditional", "constant", "get-tuple-element", "opt-barrier"}
PASSES_ON |= {"parameter", "tuple", "while", "async-start", "copy-start", "slice-start", "ConcatBitcast"}
"""Instructions that write no array of their own; what `-start` begins, `-done` gives."""


class Array(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    on_chip: bool
    """In a TPU's vector memory: a small table, or a part of one, that the compiler keeps beside the cores."""
    padded: tuple[int, ...] = ()
    """The shape as it lies in memory, in whole tiles."""

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """As it lies in memory."""
        bits = re.search(r"\d+", self.dtype)
        return prod(self.padded or self.shape) * (int(bits[0]) if bits else 8) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Instruction(NamedTuple):
    name: str
    opcode: str
    """A custom call's is its target."""
    arrays: tuple[Array, ...]
    """What it gives: several for a tuple."""
    operands: tuple[str, ...]
    fused: bool
    """Inside a fusion: only the fusion's own result is written to memory."""

    @property
    def size(self) -> int:
        return max((array.size for array in self.arrays), default=0)

    def __str__(self) -> str:
        return f"{self.opcode} {max(self.arrays, key=lambda array: array.size)}"


def instructions(text: str) -> list[Instruction]:
    """Every instruction of every computation.

    >>> [str(found) for found in instructions("ENTRY main {\\n  %x = f32[2,3]{1,0} copy(%y)\\n}")]
    ['copy f32[2,3]']
    """
    inner = set(re.findall(r" fusion\(.*calls=%?([\w.\-]+)", text))
    found, fused = [], False
    for line in text.splitlines():
        if opening := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            fused = opening[1] in inner
        elif parts := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)", line):
            name, kind, opcode, rest = parts.groups()
            target = re.search(r'custom_call_target="([^"]*)"', rest)
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            found.append(
                Instruction(
                    name, target[1] if target else opcode, tuple(_arrays(kind)), tuple(operands), fused
                )
            )
    return found


def written(text: str) -> list[Instruction]:
    """The instructions whose results are written to memory."""
    return [one for one in instructions(text) if not one.fused and one.opcode not in PASSES_ON]


def offenders(text: str, tables: Collection[int], limit: int) -> list[str]:
    """What a step may not do: write a whole table, or scatter or sort more than `limit` numbers.

    `tables` are the sizes of the tables, in numbers. A copy, a transposition and a conversion are the usual
    ways to write one; whatever else gives an array of such a size, or of a larger one, counts too. A scatter
    and a sort count inside a fusion as well, by the largest array that they read or give.
    """
    everything = instructions(text)
    size = {one.name: one.size for one in everything}
    found = [one for one in written(text) if _whole(one, tables, on_chip=False)]
    for one in everything:
        moved = max(one.size, *(size.get(operand, 0) for operand in one.operands), 0)
        if _shuffles(one.opcode) and moved > limit and one not in found:
            found.append(one)
    return [str(one) for one in found]


def staged(text: str, tables: Collection[int]) -> list[str]:
    """Whole tables that the compiler brings into on-chip memory: read once, written to no other memory."""
    return [
        str(one) for one in instructions(text) if one.opcode in STAGES and _whole(one, tables, on_chip=True)
    ]


STAGES = ("copy-done", "ConcatBitcast")


def largest(text: str) -> str:
    """The largest array that a program writes to memory."""
    return str(max(written(text), key=lambda one: one.size, default=""))


class Collective(NamedTuple):
    kind: str
    bytes: int
    """What a device gives, as it lies in memory."""
    loops: int
    """How many loops it is in."""


def collectives(text: str) -> list[Collective]:
    """Every instruction that devices meet in, once for each place that its computation is called from."""
    bodies, entry = _computations(text)
    given = {one.name: one for body in bodies.values() for one in instructions("\n".join(body))}

    def walk(name: str, loops: int) -> Iterator[Collective]:
        for line in bodies.get(name, ()):
            for one in instructions(line):
                if (kind := one.opcode.removesuffix("-start")) in COLLECTIVES:
                    read = [array for operand in one.operands for array in given[operand].arrays]
                    yield Collective(kind, sum(array.bytes for array in read), loops)
            for role, called in re.findall(CALLS, line):
                for inner in re.findall(r"[\w.\-]+", called):
                    yield from walk(inner, loops + (role == "body"))

    return list(walk(entry, 0))


COLLECTIVES = {"all-to-all", "ragged-all-to-all", "all-reduce", "all-gather", "reduce-scatter"}
COLLECTIVES |= {"collective-permute", "collective-broadcast"}
CALLS = r"(body|calls|to_apply|branch_computations|true_computation|false_computation)=\{?([%\w.\-, ]+)"


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the first that runs."""
    bodies: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.splitlines():
        if opening := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line):
            name = opening[2]
            entry = name if opening[1] else entry
        bodies.setdefault(name, []).append(line)
    return bodies, entry


def _whole(one: Instruction, tables: Collection[int], on_chip: bool) -> bool:
    sizes = [array.size for array in one.arrays if array.on_chip == on_chip]
    return any(size in tables or size >= max(tables) for size in sizes)


def _shuffles(opcode: str) -> bool:
    return opcode in ("scatter", "select-and-scatter") or "sort" in opcode.lower() or "topk" in opcode.lower()


def _arrays(kind: str) -> Iterator[Array]:
    for dtype, sizes, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", kind):
        shape = _numbers(sizes)
        yield Array(dtype, shape, "S(1)" in layout, _padded(shape, layout))


def _padded(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Each axis up to a multiple of its tile, which is told last axis first: `{1,0:T(8,128)}`."""
    order, _, tiles = layout.strip("{}").partition(":")
    tile = re.match(r"T\(([\d,]+)\)", tiles)
    sizes = list(shape)
    for axis, step in zip(_numbers(order), reversed(_numbers(tile[1]) if tile else ()), strict=False):
        sizes[axis] = -(-sizes[axis] // step) * step
    return tuple(sizes)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)
