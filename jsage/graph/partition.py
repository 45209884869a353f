"""Which shard owns a node, and in which row: said by a few numbers, never by a table of nodes.

Three ways to place `num_nodes` nodes over `shards` shards: `contiguous`, `hashed`, `balanced`. A placement is
static and hashable: it holds Python integers, passes through `jit` as a pytree without leaves (the same
placement is traced once), and may be closed over. Its methods take NumPy arrays of any integer type and, for
graphs of at most 2^31 nodes, int32 jax arrays, also inside `jit`; both give the same numbers.

A node's *placed* id is `owner * rows + local`: its row in the shards' tables when each has `rows` rows and
they are laid end to end. With `contiguous` it is the node's id itself.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jsage._internal.checks import check_integer, check_range
from jsage.graph.permutation import permute, restore
from jsage.typing import HostArray

_LIMIT = 2**31


class Location(NamedTuple):
    """Where nodes are; both int32, NumPy arrays on the host and jax arrays on devices.

    >>> contiguous(7, 3).locate(np.array([0, 5]))
    Location(owner=array([0, 1], dtype=int32), local=array([0, 2], dtype=int32))
    """

    owner: Int[Any, "*shape"]
    """The shard, and on a mesh the device, in its order."""
    local: Int[Any, "*shape"]
    """The row there."""


@dataclass(frozen=True)
class Placement(ABC):
    """Every node's shard and its row there: a bijection of ids and pairs `(owner, local)`.

    Shard `s` owns the rows `0 .. count(s) - 1`. Raises ValueError for no nodes, no shards, and 2^31 rows or
    more in a shard (rows are int32).
    """

    num_nodes: int
    shards: int

    def __post_init__(self) -> None:
        _check_counts(self.num_nodes, self.shards)
        if self.rows >= _LIMIT:
            raise ValueError(
                f"a shard holds fewer than 2^31 nodes (rows are int32), but one of {self.shards} would hold "
                f"{self.rows}: take more shards"
            )

    @property
    def rows(self) -> int:
        """The nodes of the largest shard: how long a table must be that fits any of them."""
        return max(self.count(shard) for shard in range(self.shards))

    @property
    def size(self) -> int:
        """`shards * rows`: placed ids are below it."""
        return self.shards * self.rows

    @abstractmethod
    def count(self, shard: int) -> int:
        """How many nodes a shard owns."""

    @abstractmethod
    def locate(self, ids: Int[HostArray, "*shape"]) -> Location:
        """Each node's shard and its row there; NumPy ids out of range raise ValueError."""

    @abstractmethod
    def nodes(
        self, owner: Int[HostArray, "..."] | int, local: Int[HostArray, "..."]
    ) -> Int[HostArray, "..."]:
        """The nodes in rows of shards, the inverse of `locate`; int64 on the host, int32 on a device."""

    def owner(self, ids: Int[HostArray, "*shape"]) -> Int[HostArray, "*shape"]:
        """Each node's shard, int32."""
        return self.locate(ids).owner

    def local(self, ids: Int[HostArray, "*shape"]) -> Int[HostArray, "*shape"]:
        """Each node's row in its shard, int32."""
        return self.locate(ids).local

    def placed(self, ids: Int[HostArray, "*shape"]) -> Int[HostArray, "*shape"]:
        """`owner * rows + local` of each node; int64 on the host, int32 on a device."""
        owner, local = self.locate(ids)
        if isinstance(ids, jax.Array):
            _fits_int32(self.size)
            return owner * np.int32(self.rows) + local
        return owner.astype(np.int64) * self.rows + local

    def globals(self, shard: int) -> Int[np.ndarray, " count"]:
        """The ids of the nodes that a shard owns, row by row; int64."""
        return np.asarray(self.nodes(shard, np.arange(self.count(shard))))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Ranges(Placement):
    """Shard `s` owns the nodes `bounds[s] .. bounds[s + 1] - 1`, in order; some may own none.

    >>> Ranges(5, 2, bounds=(0, 3, 5)).globals(1)
    array([3, 4])
    """

    bounds: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_counts(self.num_nodes, self.shards)
        ends = (*self.bounds[:1], *self.bounds[-1:])
        if len(self.bounds) != self.shards + 1 or ends != (0, self.num_nodes):
            raise ValueError(
                f"bounds must be {self.shards + 1} numbers from 0 to {self.num_nodes}, got "
                f"{len(self.bounds)} with the ends {ends}"
            )
        if list(self.bounds) != sorted(self.bounds):
            raise ValueError(f"bounds must never fall, got {self.bounds}")
        super().__post_init__()

    def count(self, shard: int) -> int:
        """How many nodes a shard owns."""
        return self.bounds[shard + 1] - self.bounds[shard]

    def locate(self, ids: Int[HostArray, "*shape"]) -> Location:
        """The last shard that starts at or before each id, and how far behind its start the id is."""
        if isinstance(ids, jax.Array):
            bounds = self._on_device()
            owner = jnp.searchsorted(bounds[1:-1], ids, side="right", method="compare_all").astype(jnp.int32)
            return Location(owner, ids.astype(jnp.int32) - bounds[owner])
        ids, bounds = _checked(ids, self.num_nodes), np.asarray(self.bounds, np.int64)
        owner = np.searchsorted(bounds[1:], ids, side="right")
        return Location(np.asarray(owner, np.int32), np.asarray(ids - bounds[owner], np.int32))

    def nodes(
        self, owner: Int[HostArray, "..."] | int, local: Int[HostArray, "..."]
    ) -> Int[HostArray, "..."]:
        """`bounds[owner] + local`."""
        if isinstance(local, jax.Array):
            return self._on_device()[owner] + local
        return np.asarray(np.asarray(self.bounds, np.int64)[owner] + local)

    def _on_device(self) -> jax.Array:
        """The bounds as int32; an end of 2^31 is one less, which no id comes near."""
        _fits_int32(self.num_nodes)
        return jnp.asarray(np.minimum(self.bounds, _LIMIT - 1).astype(np.int32))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Hashed(Placement):
    """Node `v` is in row `p(v) // shards` of shard `p(v) % shards`: `p` is `jsage.graph.permutation.permute`.

    >>> Hashed(10, 3).rows, len(Hashed(10, 3).globals(1))
    (4, 3)
    """

    seed: int = 0

    @property
    def rows(self) -> int:
        """`num_nodes / shards`, rounded up."""
        return -(-self.num_nodes // self.shards)

    def count(self, shard: int) -> int:
        """How many nodes a shard owns: `num_nodes / shards`, rounded up or down."""
        return (self.num_nodes - shard - 1) // self.shards + 1

    def locate(self, ids: Int[HostArray, "*shape"]) -> Location:
        """`p(v) % shards` and `p(v) // shards`."""
        if isinstance(ids, jax.Array):
            _fits_int32(self.num_nodes)
            mixed, shards = permute(ids.astype(jnp.uint32), self.num_nodes, self.seed), np.uint32(self.shards)
            return Location((mixed % shards).astype(jnp.int32), (mixed // shards).astype(jnp.int32))
        mixed = permute(_checked(ids, self.num_nodes), self.num_nodes, self.seed)
        return Location(np.asarray(mixed % self.shards, np.int32), np.asarray(mixed // self.shards, np.int32))

    def nodes(
        self, owner: Int[HostArray, "..."] | int, local: Int[HostArray, "..."]
    ) -> Int[HostArray, "..."]:
        """The ids that `p` takes to `local * shards + owner`."""
        if isinstance(local, jax.Array):
            _fits_int32(self.num_nodes)
            mixed = (local * np.int32(self.shards) + owner).astype(jnp.uint32)
            return restore(mixed, self.num_nodes, self.seed).astype(jnp.int32)
        mixed = np.asarray(np.asarray(local, np.int64) * self.shards + owner)
        return restore(_checked(mixed, self.num_nodes), self.num_nodes, self.seed)


def contiguous(num_nodes: int, shards: int) -> Ranges:
    """Ranges of `ceil(num_nodes / shards)` nodes, the last ones shorter: a node's placed id is its id.

    Raises ValueError for no nodes or no shards.

    >>> contiguous(7, 3).bounds
    (0, 3, 6, 7)
    """
    size = -(-num_nodes // max(shards, 1))
    return Ranges(num_nodes, shards, tuple(min(shard * size, num_nodes) for shard in range(shards + 1)))


def hashed(num_nodes: int, shards: int, *, seed: int = 0) -> Hashed:
    """Nodes spread as if at random, each shard with as many as any other or one fewer; `seed` says how.

    Hubs with like ids come apart, and so does every group of like ids. Raises ValueError for no nodes or no
    shards.

    >>> placement = hashed(100, 8)
    >>> [placement.count(shard) for shard in range(8)]
    [13, 13, 13, 13, 12, 12, 12, 12]
    """
    return Hashed(num_nodes, shards, seed)


def balanced(degrees: Int[HostArray, " num_nodes"], shards: int, *, node_cost: int = 1) -> Ranges:
    """Ranges whose costs `sum over v of (degrees[v] + node_cost)` are as equal as may be.

    The largest cost of a shard is the least that ranges can have: a binary search over it, where each step
    fills shard after shard up to that cost. `node_cost` is in edges: what a node's own row takes in memory or
    time; 0 counts edges alone. Raises ValueError for no nodes or shards, and for degrees or a cost that are
    negative or no integers.

    Source: Pinar and Aykanat (2004), Fast optimal load balancing algorithms for 1D partitioning.

    >>> balanced(np.array([6, 0, 0, 2, 2, 2]), shards=2, node_cost=0).bounds
    (0, 3, 6)
    """
    degrees = np.asarray(degrees)
    if not np.issubdtype(degrees.dtype, np.integer) or (degrees < 0).any():
        raise ValueError(
            f"degrees must be integers of at least 0, got {degrees.dtype}, the least {degrees.min()}"
        )
    if node_cost < 0 or shards < 1 or not len(degrees):
        raise ValueError(
            "expected at least one node and one shard, and a node_cost of at least 0, got "
            f"{len(degrees)} nodes, {shards} shards, node_cost {node_cost}"
        )
    total = np.empty(len(degrees) + 1, np.int64)
    total[0] = 0
    np.cumsum(degrees, out=total[1:])
    if node_cost:
        total += np.arange(len(total)) * node_cost
    low, high = -(-int(total[-1]) // shards), int(total[-1])
    while low < high:
        middle = (low + high) // 2
        fits = _filled(total, shards, middle)[-1] == len(degrees)
        low, high = (low, middle) if fits else (middle + 1, high)
    return Ranges(len(degrees), shards, _filled(total, shards, low))


def _check_counts(num_nodes: int, shards: int) -> None:
    if not 1 <= num_nodes < 2**62:
        raise ValueError(f"num_nodes must be in 1 .. 2^62 - 1, got {num_nodes}")
    if not 1 <= shards < _LIMIT:
        raise ValueError(f"shards must be in 1 .. 2^31 - 1, got {shards}")


def _filled(total: np.ndarray, shards: int, most: int) -> tuple[int, ...]:
    """Bounds of shards that each take the nodes that come next, up to a cost of `most`."""
    bounds = [0]
    for _ in range(shards):
        bounds.append(int(np.searchsorted(total, total[bounds[-1]] + most, side="right")) - 1)
    return tuple(bounds)


def _checked(ids: Any, num_nodes: int) -> np.ndarray:
    """Ids on the host as int64, or a ValueError."""
    ids = np.asarray(ids)
    if ids.size:
        check_integer(ids.dtype, "ids")
        check_range(ids, num_nodes, "ids")
    return ids.astype(np.int64, copy=False)


def _fits_int32(size: int) -> None:
    if size > _LIMIT:
        raise ValueError(
            f"ids on a device are int32, but there are {size} of them: place them on the host, in NumPy"
        )
