"""Programs and parameters, and their compiled forms on a graph."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import export

from .checks import check_new, check_nodes, check_tables, check_times, dtype_of, words_of

NO_NODE = int(np.iinfo(np.int32).max)
"""The destination of an edge that is padding."""


class Artifact:
    """Parameters and programs, not yet tied to a graph."""

    def __init__(self, meta: dict, params: list, programs: dict) -> None:
        self.meta, self._params, self._programs = meta, params, programs
        self._compiled: dict = {}

    @property
    def compilations(self) -> int:
        """How many programs were compiled so far."""
        return len(self._compiled)

    def place(self, tables: Mapping[str, Any], room: Sequence[int] = (0, 0)) -> "Embedder":
        """Check a graph and its features, put them on the device, and compile all programs for their shapes.

        `tables` holds `indptr`, `indices`, `features` and, where the graph has data, `edge_<name>`:
        `meta["tables"]` lists them (`jsage.serving.export.tables_of` makes them). `room`: numbers of nodes
        and of edges to leave space for, and of the words of sparse features: a later graph that fits into the
        same room compiles nothing. Raises ValueError for a wrong shape, dtype or value, and for a program
        that does not compile.
        """
        arrays = check_tables(self.meta, tables)
        num_nodes = len(arrays["indptr"]) - 1
        arrays = _padded(arrays, room)
        shapes = tuple(array.shape for _, array in sorted(arrays.items()))
        for name, exported in self._programs.items():
            if (name, shapes) not in self._compiled:
                self._compiled[name, shapes] = self._compile(name, exported, arrays)
        arguments = self._params, jax.device_put(arrays)
        run = {
            name: lambda inputs, call=self._compiled[name, shapes]: np.asarray(call(*arguments, inputs))
            for name in self._programs
        }
        return Embedder(self.meta, run, num_nodes)

    def _compile(self, name: tuple[str, int], exported: export.Exported, arrays: dict) -> Callable:
        *_, inputs = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0]
        inputs = {name: jax.ShapeDtypeStruct(aval.shape, aval.dtype) for name, aval in inputs.items()}
        try:
            return jax.jit(exported.call).lower(self._params, arrays, inputs).compile()
        except Exception as error:
            raise ValueError(
                f"{name[0]}-{name[1]}, exported with jax {self.meta['versions']['jax']}, does not "
                f"compile with jax {jax.__version__}: {error}"
            ) from error


class Embedder:
    """An artefact on a graph: every program is compiled, and no call compiles another."""

    def __init__(self, meta: dict, run: Mapping, num_nodes: int) -> None:
        self.meta, self.num_nodes, self._run = meta, num_nodes, run

    def sizes(self, function: str) -> list[int]:
        """The batch sizes that a function was exported for, ascending."""
        return sorted(size for name, size in self._run if name == function)

    def embed(self, nodes: Sequence[int] | np.ndarray | jax.Array) -> np.ndarray:
        """The model's output at any number of nodes, `[len(nodes), width]`; ValueError for ids out of range.

        The nodes run in batches of the fixed sizes, the last one padded.
        """
        return self._batched("embed", {"seeds": check_nodes(nodes, self.num_nodes)})

    def embed_at(
        self,
        nodes: Sequence[int] | np.ndarray | jax.Array,
        times: Sequence[int | float] | np.ndarray | jax.Array,
    ) -> np.ndarray:
        """The model's output at nodes, each as of a time of its own, `[len(nodes), width]`.

        What came later is not read; times are those of the graph's edges, in its unit and from its origin.
        Raises ValueError for ids out of range, and for times that are not one a node or that the dtype of the
        graph's does not hold.
        """
        nodes = check_nodes(nodes, self.num_nodes)
        if not self.sizes("embed_at"):
            raise ValueError("this artefact has no embed_at: export it with Plan(at_sizes=...)")
        times = check_times(times, len(nodes), self.meta["tables"]["edge_time"]["dtype"])
        return self._batched("embed_at", {"seeds": nodes, "times": times})

    def _batched(self, function: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        sizes, output, count = self.sizes(function), self.meta["output"], len(inputs["seeds"])
        if not sizes:
            raise ValueError(f"this artefact has no {function}: export it with Plan(sizes=...)")
        parts = [np.zeros((0, output["width"]), dtype_of(output["dtype"]))]
        for start in range(0, count, sizes[-1]):
            part = {name: values[start : start + sizes[-1]] for name, values in inputs.items()}
            length = len(part["seeds"])
            size = next(size for size in sizes if size >= length)
            padded = {name: _pad(values, size) for name, values in part.items()}
            parts.append(self._run[function, size](padded)[:length])
        return np.concatenate(parts)

    def embed_new(
        self, features: Any, src: Any, dst: Any, edge_data: Mapping[str, Any] | None = None
    ) -> np.ndarray:
        """The model's output at nodes that are in no table, `[len(features), width]`.

        Row `i` of `features` is node `-1 - i` of the edges `src[e] -> dst[e]`, which start or end at one
        of them, with `edge_data` where the graph has some. Raises ValueError for ids out of range, features
        of another width or not finite, and for more nodes, edges or words than the largest program takes.
        """
        new = check_new(self.meta, self.num_nodes, {"features": features, "src": src, "dst": dst}, edge_data)
        nodes, edges, per_node = len(new["features"]), len(new["src"]), self.meta["new_edges"]
        sizes = self.sizes("embed_new")
        rows, words = new.pop("features"), self.meta["features"]["words"]
        fit = [size for size in sizes if size >= nodes and size * per_node >= edges]
        if not fit:
            most = sizes[-1] if sizes else 0
            raise ValueError(
                f"at most {most} new nodes with {most * per_node} edges a call, got {nodes} with {edges}"
            )
        order = np.argsort(new["dst"], kind="stable")
        needed = words and np.count_nonzero(rows)
        size = next((size for size in fit if size * words >= needed), fit[-1])
        inputs: dict[str, Any] = words_of(rows, size, words) if words else {"features": _pad(rows, size)}
        inputs |= {name: _pad(array[order], size * per_node) for name, array in new.items()}
        inputs["dst"][edges:] = NO_NODE
        inputs["num_nodes"] = np.int32(self.num_nodes)
        return self._run["embed_new", size](inputs)[:nodes]


def _pad(array: np.ndarray, length: int, mode: Any = "constant") -> np.ndarray:
    """Zeros, or copies of the last row, up to `length` rows."""
    more = length - len(array)
    return np.pad(array, [(0, more)] + [(0, 0)] * (array.ndim - 1), mode=mode) if more else array


def _padded(arrays: dict[str, np.ndarray], room: Sequence[int]) -> dict[str, np.ndarray]:
    """Tables with isolated nodes, unread edges and words up to `room`; one edge at least."""
    nodes, edges = len(arrays["indptr"]) - 1, len(arrays["indices"])
    words = len(arrays.get("features_values", ()))
    given: dict[str, int] = dict(zip(("nodes", "edges", "words"), room, strict=False))
    found: dict[str, int] = {"nodes": nodes, "edges": edges, "words": words}
    if any(room) and any(found[name] > most for name, most in given.items()):
        names = [name for name in given if name != "words" or words]
        told = (" and ".join(f"{sizes[name]} {name}" for name in names) for sizes in (given, found))
        raise ValueError("room is for {}, got {}".format(*told))
    nodes, edges, words = (max(size, given.get(name, 0)) for name, size in found.items())
    sizes = {"features": nodes, "features_start": nodes, "features_length": nodes}
    sizes |= {"features_indices": words, "features_values": words}
    indptr = _pad(arrays.pop("indptr"), nodes + 1, "edge")
    padded = {name: _pad(array, sizes.get(name, max(edges, 1))) for name, array in arrays.items()}
    return padded | {"indptr": indptr}
