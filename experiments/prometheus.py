"""Counts and histograms in Prometheus' text format, version 0.0.4."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence


class Counter:
    """A number that rises, one for each combination of labels."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self.name, self.text, self._labels = name, text, labels
        self._values: dict[tuple[str, ...], float] = defaultdict(float)

    def add(self, amount: float = 1, *values: str) -> None:
        self._values[values] += amount

    def lines(self) -> Iterator[str]:
        yield from head(self.name, self.text, "counter")
        for values, total in sorted(self._values.items()):
            yield f"{self.name}{braces(zip(self._labels, values, strict=True))} {total:g}"


class Histogram:
    """How many observations were at most each bound, with their sum and their number."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        self.name, self.text, self._bounds, self._labels = name, text, bounds, labels
        self._counts: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * (len(bounds) + 1))
        self._sums: dict[tuple[str, ...], float] = defaultdict(float)

    def observe(self, value: float, *values: str) -> None:
        self._counts[values][bisect_left(self._bounds, value)] += 1
        self._sums[values] += value

    def lines(self) -> Iterator[str]:
        yield from head(self.name, self.text, "histogram")
        for values, counts in sorted(self._counts.items()):
            pairs, total = list(zip(self._labels, values, strict=True)), 0
            for bound, count in zip([*self._bounds, float("inf")], counts, strict=True):
                total += count
                level = "+Inf" if bound == float("inf") else f"{bound:g}"
                yield f"{self.name}_bucket{braces([*pairs, ('le', level)])} {total}"
            yield f"{self.name}_sum{braces(pairs)} {self._sums[values]!r}"
            yield f"{self.name}_count{braces(pairs)} {total}"


class Gauge:
    """A number that is asked for when it is read."""

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self.name, self.text, self._read = name, text, read

    def lines(self) -> Iterator[str]:
        yield from head(self.name, self.text, "gauge")
        yield f"{self.name} {self._read():g}"


def head(name: str, text: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def braces(pairs: Iterable[tuple[str, str]]) -> str:
    """`{name="value",...}`, nothing without labels.

    >>> braces([("path", 'a"b')])
    '{path="a\\\\"b"}'
    """
    escaped = {"\\": r"\\", '"': r"\"", "\n": r"\n"}
    inner = ",".join(
        f'{name}="{"".join(escaped.get(letter, letter) for letter in value)}"' for name, value in pairs
    )
    return f"{{{inner}}}" if inner else ""


def page(metrics: Iterable[Counter | Histogram | Gauge]) -> str:
    """The page that a Prometheus server reads."""
    return "".join(f"{line}\n" for metric in metrics for line in metric.lines())
