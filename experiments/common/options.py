"""The command line of an experiment: the fields of its frozen `Config`, one option each."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from experiments.common.output import write_json

C = TypeVar("C")


def read(config: type[C], arguments: list[str] | None, name: str, text: str | None) -> C:
    """Read the options of `python -m experiments.name`: the fields of the dataclass `config`.

    A field without a default is an argument that must be given, in its place.
    """
    fields = dataclasses.fields(config)  # pyright: ignore[reportArgumentType]
    placed = [field.name for field in fields if field.default is dataclasses.MISSING]
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        usage=" ".join(["%(prog)s", *map(str.upper, placed), "[--option value ...]"]),
        description=(text or "").split("\n")[0],
    )
    for field in fields:
        if field.name in placed:
            parser.add_argument(field.name, help=field.metadata["help"])
            continue
        flag, note = "--" + field.name.replace("_", "-"), field.metadata["help"]
        if isinstance(field.default, bool):
            parser.add_argument(flag, action="store_true", help=note)
            continue
        kind, note = KINDS.get(type(field.default), str), f"{note}{shown(field.default)}"
        if choices := field.metadata["choices"]:
            parser.add_argument(flag, choices=choices, default=field.default, help=note)
        else:
            label = "text" if kind is str else kind.__name__
            parser.add_argument(flag, type=kind, default=field.default, metavar=label, help=note)
    options = vars(parser.parse_args(arguments))
    check(parser, options)
    return config(**options)


def check(parser: argparse.ArgumentParser, options: Mapping[str, Any]) -> None:
    """What the options that experiments share must keep."""
    if options.get("resume") and not options["out"]:
        parser.error("--resume needs the --out folder of the run to go on with")
    if options["json"] and not Path(options["json"]).absolute().parent.is_dir():
        parser.error(f"argument --json: no folder {Path(options['json']).absolute().parent} to write into")
    for name in ("dropout", "smoothing"):
        if options.get(name, 0) >= 1:
            parser.error(f"argument --{name}: expected a number below 1, got {options[name]}")


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """`25,10` as a tuple."""
    return tuple(count(part) for part in text.split(","))


def one_a_layer(fanouts: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """The first `layers` of them; the last repeats where there are fewer."""
    return fanouts[:layers] + fanouts[-1:] * (layers - len(fanouts))


def number(text: str) -> float:
    """A number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return value


KINDS: dict[type, Callable[[str], Any]] = {int: count, tuple: counts, float: number}


def shown(default: Any) -> str:
    """What the help says of a default."""
    if default is None:
        return ""
    return f" (default: {','.join(map(str, default)) if isinstance(default, tuple) else default})"


def command(job: Callable[[C], dict], read: Callable[[], C]) -> int:
    """Do the job, write its JSON: 0, or 2 and one line on standard error for bad input or a bad loss."""
    try:
        config: Any = read()
        write_json(job(config), config.json)
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0
