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

    @property
    def size(self) -> int:
        return prod(self.shape)

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


def _whole(one: Instruction, tables: Collection[int], on_chip: bool) -> bool:
    sizes = [array.size for array in one.arrays if array.on_chip == on_chip]
    return any(size in tables or size >= max(tables) for size in sizes)


def _shuffles(opcode: str) -> bool:
    return opcode in ("scatter", "select-and-scatter") or "sort" in opcode.lower() or "topk" in opcode.lower()


def _arrays(kind: str) -> Iterator[Array]:
    for dtype, shape, layout in re.findall(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", kind):
        yield Array(dtype, tuple(int(length) for length in shape.split(",") if length), "S(1)" in layout)
