"""Features that stay on the host: graphs larger than a device's memory.

The graph's structure and the labels are on the device, the feature table is a NumPy array or a memory map
(`jsage.data.open`). The sampler of on-device training runs there first, with the step's own key; a thread
then gathers one copy of each row that the batch reads, and puts it on the device while earlier steps run.

    loader = Loader(sampler(fanouts), graph, features, rows)
    update = jax.jit(make_update(loss_fn, optimizer), donate_argnums=0)
    state, sums = train_epoch(update, state, loader, jsage.epoch(key, train, batch_size))

Blocks, keys and results are those of training on the device. These are programs that the host calls in
turn, so here, unlike elsewhere in jsage, the sampling is jitted by the library.
"""

import mmap
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jsage.block import Block, Indexed
from jsage.compact import Capacities, compact, sample_compact_blocks
from jsage.draw import without_replacement
from jsage.graph import Graph
from jsage.sample import sample_blocks
from jsage.train import TrainState, Update
from jsage.typing import DrawFn, HostArray, PRNGKey

SampleFn: TypeAlias = Callable[
    [PRNGKey, Graph, Int[Array, " num_seeds"]], tuple[tuple[Block, ...], Bool[Array, ""]]
]
"""`(key, graph, seeds) -> (blocks, fits)`; `key` is the one that `make_update` gives to the loss."""

_PAGES = 2**16  # what one page fault maps at most
_PART = 512


class Sampler(NamedTuple):
    """How blocks are drawn, and how where they do not fit (None: they always do)."""

    sample: SampleFn
    otherwise: SampleFn | None = None


class Batch(NamedTuple):
    """What the loss of a step gets as its batch."""

    rows: Float[Array, "rows d"]
    """The features of every node that the batch reads, once each; arbitrary beyond those."""
    blocks: tuple[Block, ...]
    """`blocks[0]` reads `rows`."""
    batch: Any
    """The batch as it was given: `(seeds, mask)`."""


class _Plan(NamedTuple):
    ids: Int[Array, " slots"]
    size: Int[Array, ""]
    fits: Bool[Array, ""]
    blocks: tuple[Block, ...]


def sampler(
    fanouts: Sequence[int], capacities: Capacities | None = None, *, draw: DrawFn = without_replacement
) -> Sampler:
    """Trees drawn by the loss's own key; with `capacities` the blocks that `jsage.compact.compacted` draws.

    The latter are drawn by the first key of `split(key)`: a loss with dropout splits off the second one.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3)
    >>> (first, last), fits = sampler((2, 3)).sample(jax.random.key(0), graph, jnp.array([0, 2]))
    >>> first.dst
    Array([0, 2, 1, 2, 2, 2], dtype=int32)
    """

    def trees(key: PRNGKey, graph: Graph, seeds: Array) -> tuple[tuple[Block, ...], Array]:
        return sample_blocks(key, graph, seeds, fanouts, draw=draw), jnp.array(True)

    if capacities is None:
        return Sampler(trees)
    return Sampler(
        lambda key, graph, seeds: sample_compact_blocks(
            jax.random.split(key)[0], graph, seeds, fanouts, capacities, draw=draw
        ),
        lambda key, graph, seeds: trees(jax.random.split(key)[0], graph, seeds),
    )


class Loader:
    """Batches whose rows are read from a table on the host.

    `features`: `[num_nodes, d]`, on the host. `rows` is how many fit in a batch (`measure_rows`); one that
    reads more gets as many rows as it has slots, and another program that is compiled once; so does one
    whose blocks do not fit the sampler's capacities. `resident_bytes` bounds how much of a memory map is
    mapped at a time: pages are let go, and found again in the system's cache if they are still there, which
    takes longer. None leaves that to the system, which takes them back whenever it needs memory.

    Raises ValueError if `features` has not one row a node.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.data import digits
    >>> graph, features, labels, train, *_ = digits()
    >>> loader = Loader(sampler((5, 5)), graph, features, rows=1536)
    >>> key, seeds = jax.random.key(0), train[None]
    >>> [batch] = loader.prefetch(key, 0, (seeds, jnp.ones(seeds.shape, bool)))
    >>> batch.rows.shape, batch.blocks[0].src.shape
    ((1536, 64), (600, 5))
    """

    def __init__(
        self,
        sampler: Sampler,
        graph: Graph,
        features: HostArray,
        rows: int | None = None,
        *,
        resident_bytes: int | None = None,
    ) -> None:
        if features.ndim != 2 or features.shape[0] != graph.num_nodes:
            raise ValueError(
                f"features must be [num_nodes, d] with one row a node, {graph.num_nodes}, "
                f"got shape {features.shape}"
            )
        if rows is not None and rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}: measure_rows gives a number that fits")
        self._graph = jax.tree.map(jnp.asarray, graph)
        self._table = np.asanyarray(features)
        self._rows, self._resident = rows, resident_bytes or 0
        self._mapping = None if resident_bytes is None else _mapping(self._table)
        self._sample = jax.jit(_planner(sampler.sample))
        self._otherwise = jax.jit(_planner(sampler.otherwise or sampler.sample))
        self._free: defaultdict[int, list[mmap.mmap]] = defaultdict(list)

    def prefetch(
        self, key: PRNGKey, step: int | Int[Array, ""], batches: PyTree, *, ahead: int = 1
    ) -> Iterator[Batch]:
        """The batches of steps `step`, `step + 1`, ... of a state with this `key`, in order.

        `batches` are arrays with a leading axis of batches, the seeds first, as for `jsage.train_epoch`. The
        rows of `ahead` batches are gathered while the caller works on one, by as many threads, which end
        with the iterator, however it ends. What goes wrong in them is raised here. Raises ValueError for
        `ahead < 1`.
        """
        if ahead < 1:
            raise ValueError(f"ahead must be at least 1 batch, got {ahead}")
        key = key.copy()  # the caller's may be donated to the first step
        return self._prefetch(key, int(step), jax.tree.map(np.asarray, batches), ahead)

    def _prefetch(self, key: PRNGKey, step: int, batches: PyTree, ahead: int) -> Iterator[Batch]:
        count = jax.tree.leaves(batches)[0].shape[0]
        threads = ThreadPoolExecutor(ahead, thread_name_prefix="jsage-host")
        staged: deque[Future[Batch]] = deque()
        try:
            for number in range(count + ahead):
                if number < count:
                    batch = jax.tree.map(lambda values, i=number: values[i], batches)
                    arguments = key, np.int32(step + number), self._graph, jax.tree.leaves(batch)[0]
                    staged.append(threads.submit(self._stage, self._sample(*arguments), arguments, batch))
                if number >= ahead:
                    yield staged.popleft().result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _stage(self, plan: _Plan, arguments: tuple, batch: Any) -> Batch:
        fits = bool(plan.fits)
        if not fits:
            plan = self._otherwise(*arguments)
        slots, size = plan.ids.shape[0], int(plan.size)
        small = fits and self._rows is not None and size <= self._rows
        rows = self._lend(min(self._rows or slots, slots) if small else slots)
        self._gather(np.asarray(plan.ids)[:size], rows[:size])
        return Batch(*jax.device_put((rows, plan.blocks, batch)))

    def _lend(self, rows: int) -> np.ndarray:
        """An array whose memory comes back when nothing refers to it any more, no running step either.

        Memory that was used before costs no page faults. It starts a page, so that a CPU does not copy it.
        """
        shape, dtype = (rows, self._table.shape[1]), self._table.dtype
        size = max(rows * shape[1] * dtype.itemsize, 1)
        free = self._free[size]
        try:
            memory = free.pop()
        except IndexError:
            memory = mmap.mmap(-1, size)
        flat = np.frombuffer(memory, dtype, rows * shape[1])
        weakref.finalize(flat.base, free.append, memory).atexit = False
        return flat.reshape(shape)

    def _gather(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """`rows[:] = table[ids]`; with a bound, in the table's order, letting go of what was read."""
        table = self._table.view(np.ndarray)
        if self._mapping is None:
            np.take(table, ids, axis=0, out=rows, mode="clip")
            return
        order = np.argsort(ids)
        began = 0
        for start in range(0, len(ids), _PART):
            part = order[start : start + _PART]
            rows[part] = table[ids[part]]
            span = (int(ids[part[-1]]) - int(ids[order[began]])) * table.strides[0]
            if min(span, (start - began) * _PAGES) > self._resident - _PART * _PAGES:
                self._mapping.madvise(mmap.MADV_DONTNEED)
                began = start + _PART
        self._mapping.madvise(mmap.MADV_DONTNEED)


def measure_rows(sampler: Sampler, key: PRNGKey, graph: Graph, batches: PyTree) -> int:
    """How many rows the batches read, once each: the most of the first 8 and 4 %; on the host, once.

    >>> import jax
    >>> from jsage.data import digits
    >>> dataset = digits()
    >>> measure_rows(sampler((10, 10)), jax.random.key(0), dataset.graph, dataset.train[None])
    1792
    """
    plan = jax.jit(_planner(sampler.sample))
    seeds = np.asarray(jax.tree.leaves(batches)[0])[:8]
    sizes = [int(plan(key, np.int32(step), graph, nodes).size) for step, nodes in enumerate(seeds)]
    return -(-int(1.04 * max(sizes)) // 128) * 128


def train_epoch(
    update: Update, state: TrainState, loader: Loader, batches: PyTree, *, ahead: int = 1
) -> tuple[TrainState, dict[str, Array]]:
    """`jsage.train_epoch` with rows from the host; the metrics come back summed over the batches.

    `update` is jitted, and may donate the old state. Its loss gets a `Batch`:

    >>> import jax, jax.numpy as jnp, optax
    >>> from jsage import GraphSAGE, batches, init_state, make_update
    >>> from jsage.data import digits
    >>> from jsage.loss import cross_entropy, masked_mean
    >>> graph, features, labels, train, *_ = digits()
    >>> model, optimizer = GraphSAGE(hidden=16, out=10), optax.adam(0.01)
    >>> def loss_fn(params, stats, batch, key):
    ...     (seeds, mask), h = batch.batch, model.apply(params, batch.rows, batch.blocks)
    ...     losses = cross_entropy(h, labels[seeds], mask)
    ...     return masked_mean(losses, mask), ({"loss": losses.sum(), "weight": mask.sum()}, stats)
    >>> loader = Loader(sampler((5, 5)), graph, features, rows=1024)
    >>> key, seeds = jax.random.key(0), batches(train, 50)
    >>> params = model.init(key, *next(loader.prefetch(key, 0, seeds))[:2])
    >>> update = jax.jit(make_update(loss_fn, optimizer), donate_argnums=0)
    >>> state, sums = train_epoch(update, init_state(key, params, optimizer), loader, seeds)
    >>> int(state.step), int(sums["weight"])
    (2, 100)
    """
    kept: list[dict[str, Array]] = []
    for batch in loader.prefetch(state.key, state.step, batches, ahead=ahead):
        state, metrics = update(state, batch)
        del batch
        jax.block_until_ready(kept[-1:])  # one step runs and one waits: no more rows than that on the device
        kept.append(metrics)
    return state, jax.tree.map(lambda *values: jnp.asarray(np.stack(values)).sum(0), *kept)


def _planner(sample: SampleFn) -> Callable[..., _Plan]:
    def plan(key: PRNGKey, step: Array, graph: Graph, seeds: Array) -> _Plan:
        (first, *rest), fits = sample(jax.random.fold_in(key, step), graph, seeds)
        if not isinstance(first, Indexed):
            raise TypeError(f"the first block must be Indexed, by node ids, got {type(first).__name__}")
        ids = jnp.concatenate([first.dst, first.src.ravel()])
        found = compact(ids, ids.shape[0])
        own, slots = jnp.split(found.position, [first.num_dst])
        first = first._replace(dst=own, src=slots.reshape(first.src.shape))
        return _Plan(found.ids, found.size, fits, (first, *rest))

    return plan


def _mapping(table: np.ndarray) -> mmap.mmap:
    """The memory map that a table lies in, if nothing in it can be lost."""
    base: Any = table
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, mmap.mmap) or getattr(table, "mode", "c") == "c":
        raise ValueError(
            f"resident_bytes needs features in a memory map of mode 'r', got {type(table).__name__}: open "
            "a graph directory by jsage.data.open, or leave resident_bytes out"
        )
    return base
