"""What training on a mesh takes of each device, in bytes: computeed from sizes, before anything is placed."""

from typing import NamedTuple

import numpy as np

from jsage.data import whole_lanes

INT, STEP = 4, 8


class Workload(NamedTuple):
    """What is trained on what; tables are those of the largest shard, rows those of one device.

    >>> Workload(num_nodes=111_059_956, num_edges=3_231_371_744, shards=8, num_features=128).rows
    13882495
    """

    num_nodes: int
    num_edges: int
    shards: int
    num_features: int
    itemsize: int = 2
    """Bytes of a feature: 2 in bfloat16."""
    lanes: int = 1
    """Rows of features are padded to a multiple of it: 128 on a TPU."""
    uneven: float = 1.0
    """Edges of the largest shard over those of the mean one; 1.0 for `balanced` placements."""
    num_cached: int = 0
    """Rows that each device has a copy of."""
    seeds: int = 1024
    """Seeds a device and step."""
    fanouts: tuple[int, ...] = (25, 10)
    capacities: tuple[int, ...] = ()
    """Ids for each owner at once, of each hop and of the features; none: `safe_capacity` of each."""
    num_parameters: int = 0
    steps: int = 1
    """Batches on the device: those of a scan."""

    @property
    def rows(self) -> int:
        """Nodes of a shard, as `contiguous` and `hashed` place them."""
        return -(-self.num_nodes // self.shards)

    @property
    def edges(self) -> int:
        """Edges of the largest shard."""
        return int(np.ceil(self.uneven * self.num_edges / self.shards))

    @property
    def width(self) -> int:
        """Numbers in a row of features as it lies on the device."""
        return whole_lanes(self.num_features, self.lanes)

    @property
    def word_bytes(self) -> int:
        """Of a place in memory: `jsage.parallel.place.Words`."""
        if self.shards * self.rows <= 2**31:
            return INT
        return INT + (2 if self.shards <= 2**15 else INT)

    @property
    def frontiers(self) -> tuple[int, ...]:
        """Ids before each hop, and at the end: `seeds · Π (1 + fanout)`."""
        return tuple(int(size) for size in self.seeds * np.cumprod([1, *(1 + f for f in self.fanouts)]))

    @property
    def slots(self) -> tuple[int, ...]:
        """The capacities of each hop and of the features."""
        return self.capacities or tuple(safe_capacity(size, self.shards) for size in self.frontiers)


def safe_capacity(num_ids: int, shards: int, risk: float = 0.01) -> int:
    """A capacity that needs no graph: enough for `num_ids` distinct ids a device and owners at random.

    Under a `hashed` placement an owner has about `m = num_ids / shards` of them, and some owner has more than
    `m + t` for some device with probability `risk` at most, where `t = L / 3 + sqrt(L² / 9 + 2 L m)` and
    `L = log(shards² / risk)`: Bernstein's inequality, and the union of all pairs of devices. Repeated ids
    and copies of hot rows only make it fewer: `measure_capacities` finds how few.

    >>> safe_capacity(292_864, 256), safe_capacity(292_864, 8), safe_capacity(1024, 256)
    (1344, 37416, 24)
    """
    mean, log = num_ids / shards, float(np.log(shards**2 / risk))
    most = mean + log / 3 + float(np.sqrt(log**2 / 9 + 2 * log * mean))
    return round_capacity(most, num_ids)


def round_capacity(most: float, num_ids: int) -> int:
    """Up to a multiple of 8, from 1 to `num_ids`.

    >>> round_capacity(9.5, 100), round_capacity(9.5, 10)
    (16, 10)
    """
    return min(max(-(-int(np.ceil(most)) // STEP) * STEP, 1), num_ids)


def estimate_memory(load: Workload) -> dict[str, int]:
    """Bytes of each device: its tables, its cache, its batches, the model, and what a step writes at least.

    With `n = rows`, `e = edges`, `d` numbers in a row of features of `b` bytes, `h` hot rows, `P` devices:

    * `graph`: `4 (n + 1) + 4 n + w e`, offsets, names and sources; `w` is 4 up to `P n = 2^31`, else 6
      (8 beyond 2^15 devices), and names take `8 n` from `2^32` nodes on;
    * `features`: `n d b`; `cache`: `h (d b + 4) + 4 (P + 1)`;
    * `model`: parameters and Adam's two moments, `12` a parameter;
    * `batches`: `13` a seed: its place, its label, whether it is valid;
    * `exchange`: slots sent and received, of the largest exchange (`exchange_bytes`);
    * `batch`: the rows of all ids of a batch, `seeds Π (1 + fanout) d b`.

    The last two are temporary; a compiler may hold more than one of them at a time. Raises ValueError for a
    shard of 2^31 rows or edges, and for other than one capacity a hop and one of the features.

    >>> sizes = Workload(num_nodes=3_000_000_000, num_edges=18_000_000_000, shards=256, num_features=256)
    >>> {name: f"{size / 1e9:.2f} GB" for name, size in estimate_memory(sizes).items() if size > 1e7}
    {'graph': '0.52 GB', 'features': '6.00 GB', 'exchange': '0.36 GB', 'batch': '0.15 GB'}
    """
    _check(load)
    name_bytes = INT if load.num_nodes <= 2**32 else 2 * INT
    row = load.width * load.itemsize
    return {
        "graph": INT * (load.rows + 1) + name_bytes * load.rows + load.word_bytes * load.edges,
        "features": load.rows * row,
        "cache": load.num_cached * (row + INT) + INT * (load.shards + 1) if load.num_cached else 0,
        "model": 3 * INT * load.num_parameters,
        "batches": load.steps * load.seeds * (3 * INT + 1),
        "exchange": 2 * max(exchange_bytes(load)),
        "batch": load.frontiers[-1] * row,
    }


def exchange_bytes(load: Workload) -> tuple[int, ...]:
    """Bytes that a device sends in one round of each hop and of the features: ids out, answers back.

    `capacity · P` slots each: `4` for an id; of a hop back `w · fanout`, of the features `d b`. The share
    `1 / P` of them stays where it is.

    >>> exchange_bytes(Workload(1000, 8000, shards=8, num_features=16, capacities=(130, 3400, 40_000)))
    (108160, 1196800, 11520000)
    """
    _check(load)
    answers = [load.word_bytes * fanout for fanout in load.fanouts] + [load.width * load.itemsize]
    return tuple(load.shards * slots * (INT + each) for slots, each in zip(load.slots, answers, strict=True))


def _check(load: Workload) -> None:
    if max(load.rows, load.edges) >= 2**31:
        raise ValueError(
            f"a shard holds fewer than 2^31 rows and edges, got {load.rows} rows and {load.edges} edges: "
            "take more shards"
        )
    if load.capacities and len(load.capacities) != len(load.fanouts) + 1:
        raise ValueError(
            f"expected a capacity for each of {len(load.fanouts)} hops and one for the features, got "
            f"{load.capacities}: measure_capacities gives them"
        )
