"""Features that stay on the host: graphs larger than a device's memory.

The graph's structure and the labels are on the device, the feature table is a NumPy array or a memory map
(`jsage.data.open`). The sampler of on-device training runs there first, with the step's own key; a thread
then gathers one copy of each row that the batch reads, and puts it on the device while earlier steps run.

    loader = Loader(sampler(fanouts), graph, features, rows)
    update = jax.jit(scan_group(make_update(loss_fn, optimizer)), donate_argnums=0)
    state, sums = train_epoch(update, state, loader, jsage.epoch(key, train, batch_size))

Blocks and keys are those of training on the device, and so are results, to rounding; only dropout on the
features themselves may fall on other rows, as layers choose by the number of rows where to apply it. The host
calls these programs in turn, so here, unlike elsewhere in jsage, the library jits the sampling.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from jsage._internal.row_reader import RowReader
from jsage.blocks import Indexed
from jsage.blocks.layout import Block
from jsage.graph import Graph, before
from jsage.graph.as_of import VisibleFn
from jsage.graph.sparse import is_sparse
from jsage.sampling.compact import Capacities, distinct_hashed, sample_compact_blocks
from jsage.sampling.draws import latest, without_replacement
from jsage.sampling.neighbors import sample_blocks
from jsage.sampling.sparse_reader import SparseReader
from jsage.sampling.temporal import TimedNodes, sample_temporal_blocks
from jsage.train import TrainState, Update
from jsage.typing import AnyDraw, PRNGKey

SampleFn: TypeAlias = Callable[[PRNGKey, Graph, Any], tuple[tuple[Block, ...], Bool[Array, ""]]]
"""`(key, graph, seeds) -> (blocks, fits)`; `key` is the one that `make_update` gives to the loss."""


class BlockSampler(NamedTuple):
    """How blocks are drawn, and how where they do not fit (None: they always do)."""

    sample: SampleFn
    otherwise: SampleFn | None = None


class Batch(NamedTuple):
    """What the loss of a step gets as its batch."""

    rows: Any
    """The features `[rows, d]` of every node that the batch reads, once each; arbitrary beyond those."""
    blocks: tuple[Block, ...]
    """`blocks[0]` reads `rows`."""
    batch: Any
    """The batch as it was given: `(seeds, mask)`."""


class BatchGroup(NamedTuple):
    """Batches that one program trains on, one after the other: a leading axis on all but the rows."""

    rows: Any
    blocks: tuple[Block, ...]
    batch: Any


class _Plan(NamedTuple):
    ids: Int[Array, " slots"]
    size: Int[Array, ""]
    fits: Bool[Array, ""]
    blocks: tuple[Block, ...]


def sampler(
    fanouts: Sequence[int], capacities: Capacities | None = None, *, draw: AnyDraw = without_replacement
) -> BlockSampler:
    """Trees drawn by the loss's own key; with `capacities` the blocks that `jsage.sampling.compacted` draws.

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
        return BlockSampler(trees)
    return BlockSampler(
        lambda key, graph, seeds: sample_compact_blocks(
            jax.random.split(key)[0], graph, seeds, fanouts, capacities, draw=draw
        ),
        lambda key, graph, seeds: trees(jax.random.split(key)[0], graph, seeds),
    )


def temporal_sampler(
    fanouts: Sequence[int], *, draw: AnyDraw = latest, visible: VisibleFn = before
) -> BlockSampler:
    """`sample_temporal_blocks` by the loss's own key: seeds of batches are `TimedNodes`.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges, sort_by_time
    >>> graph = sort_by_time(from_edges([1, 2], [0, 0], num_nodes=3, time=[10, 20]))
    >>> seeds = TimedNodes(jnp.array([0]), jnp.array([20]))
    >>> (block,), fits = temporal_sampler((2,)).sample(jax.random.key(0), graph, seeds)
    >>> block.src
    Array([[1, 0]], dtype=int32)
    """

    def sample(key: PRNGKey, graph: Graph, seeds: TimedNodes) -> tuple[tuple[Block, ...], Array]:
        blocks = sample_temporal_blocks(key, graph, seeds, fanouts, draw=draw, visible=visible)
        return blocks, jnp.array(True)

    return BlockSampler(sample)


class Loader:
    """Batches whose rows are read from a table on the host.

    `features`: `[num_nodes, d]`, on the host; of `jsage.graph.SparseRows` a group has room for the words of
    its longest rows. `rows` is how many fit in a group (`measure_rows`); one that reads more gets as many
    rows as it has slots, and another program that is compiled once; so do batches whose blocks do not fit the
    sampler's capacities, each alone. `resident_bytes` is that of `RowReader`.

    Raises ValueError if `features` has not one row a node, and for `resident_bytes` of sparse ones.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.data import digits
    >>> graph, features, labels, train, *_ = digits()
    >>> loader = Loader(sampler((5, 5)), graph, features, rows=1536)
    >>> key, seeds = jax.random.key(0), train[None]
    >>> [group] = loader.prefetch(key, 0, (seeds, jnp.ones(seeds.shape, bool)))
    >>> group.rows.shape, group.blocks[0].src.shape
    ((1536, 64), (1, 600, 5))
    """

    def __init__(
        self,
        sampler: BlockSampler,
        graph: Graph,
        features: Any,
        rows: int | None = None,
        *,
        resident_bytes: int | None = None,
    ) -> None:
        if features.ndim != 2 or features.shape[0] != graph.num_nodes:
            raise ValueError(
                f"features must be [num_nodes, d] with one row a node, {graph.num_nodes}, "
                f"got shape {features.shape}"
            )
        if resident_bytes is not None and is_sparse(features):
            raise ValueError(
                "resident_bytes bounds a table's pages, and sparse features are none: leave it out"
            )
        if rows is not None and rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}: measure_rows gives a number that fits")
        self._graph = jax.tree.map(jnp.asarray, graph)
        self._rows = rows
        self._table = SparseReader(features) if is_sparse(features) else RowReader(features, resident_bytes)
        self._sample = jax.jit(_planner(sampler.sample))
        self._otherwise = jax.jit(_planner(sampler.otherwise or sampler.sample))

    def prefetch(
        self,
        key: PRNGKey,
        step: int | Int[Array, ""],
        batches: PyTree,
        *,
        ahead: int = 1,
        together: int = 1,
    ) -> Iterator[BatchGroup]:
        """The batches of steps `step`, `step + 1`, ... of a state with this `key`, in order.

        `batches` are arrays with a leading axis of batches, the seeds first, as for `jsage.train_epoch`; with
        `temporal_sampler` the seeds are `TimedNodes`. A group has `together` of them (the last one what is
        left) and each row once. The rows of `ahead` groups are gathered while the caller works on one, by as
        many threads, which end with the iterator, however it ends. What goes wrong in them is raised here.
        Raises ValueError for `ahead` or `together` below 1.
        """
        if min(ahead, together) < 1:
            raise ValueError(f"ahead and together must be at least 1, got {ahead} and {together}")
        key = key.copy()  # the caller's may be donated to the first step
        count = jax.tree.leaves(batches)[0].shape[0]
        batches = jax.tree.map(np.asarray, batches)
        cuts = [slice(start, start + together) for start in range(0, count, together)]
        groups = [jax.tree.map(lambda values, cut=cut: values[cut], batches) for cut in cuts]
        return self._prefetch(key, int(step), groups, ahead)

    def _prefetch(self, key: PRNGKey, step: int, groups: list[Any], ahead: int) -> Iterator[BatchGroup]:
        threads = ThreadPoolExecutor(ahead, thread_name_prefix="jsage-host")
        staged: deque[Future[list[BatchGroup]]] = deque()
        try:
            for number in range(len(groups) + ahead):
                if number < len(groups):
                    arguments = self._arguments(key, step, groups[number])
                    step += _count(arguments[-1])
                    plan = self._sample(*arguments)
                    staged.append(threads.submit(self._stage, plan, arguments, groups[number]))
                if number >= ahead:
                    yield from staged.popleft().result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _arguments(self, key: PRNGKey, step: int, group: Any) -> tuple:
        return key, np.int32(step), self._graph, _seeds(group)

    def _stage(self, plan: _Plan, arguments: tuple, group: Any) -> list[BatchGroup]:
        key, step, count = *arguments[:2], _count(arguments[-1])
        fits = bool(plan.fits)
        if not fits and count > 1:
            alone = [jax.tree.map(lambda values, i=i: values[i : i + 1], group) for i in range(count)]
            calls = [self._arguments(key, int(step) + i, one) for i, one in enumerate(alone)]
            staged = [self._stage(self._sample(*c), c, one) for c, one in zip(calls, alone, strict=True)]
            return [group for groups in staged for group in groups]
        if not fits:
            plan = self._otherwise(*arguments)
        slots, size = plan.ids.shape[0], int(plan.size)
        small = fits and self._rows is not None and size <= self._rows
        rows = self._table.read(
            np.asarray(plan.ids)[:size], min(self._rows or slots, slots) if small else slots
        )
        return [BatchGroup(*jax.device_put((rows, plan.blocks, group)))]


def measure_rows(
    sampler: BlockSampler, key: PRNGKey, graph: Graph, batches: PyTree, together: int = 1
) -> int:
    """How many rows a group of batches reads, each once: the most of the first 8 and 4 %; on the host, once.

    >>> import jax
    >>> from jsage.data import digits
    >>> dataset = digits()
    >>> measure_rows(sampler((10, 10)), jax.random.key(0), dataset.graph, dataset.train[None])
    1792
    """
    plan = jax.jit(_planner(sampler.sample))
    seeds = jax.tree.map(lambda rows: np.asarray(rows)[: 8 * together], _seeds(batches))
    starts = range(0, max(_count(seeds) - together, 0) + 1, together)
    groups = [jax.tree.map(lambda rows, at=at: rows[at : at + together], seeds) for at in starts]
    sizes = [int(plan(key, np.int32(at), graph, some).size) for at, some in zip(starts, groups, strict=True)]
    return -(-int(1.04 * max(sizes)) // 128) * 128


def scan_group(update: Update) -> Update:
    """`update(state, batch)` over the batches of a group: the metrics have a leading axis.

    >>> update = scan_group(lambda state, batch: (state + batch.rows[batch.batch].sum(), {}))
    >>> update(jnp.float32(0), BatchGroup(jnp.array([[1.0], [2.0]]), (), jnp.array([0, 1, 1])))[0]
    Array(5., dtype=float32)
    """

    def run(state: Any, group: BatchGroup) -> Any:
        def step(state: Any, rest: Any) -> Any:
            return update(state, Batch(group.rows, *rest))

        return jax.lax.scan(step, state, (group.blocks, group.batch))

    return run


def train_epoch(
    update: Update,
    state: TrainState,
    loader: Loader,
    batches: PyTree,
    *,
    ahead: int = 1,
    together: int = 1,
) -> tuple[TrainState, dict[str, Array]]:
    """`jsage.train_epoch` with rows from the host; the metrics come back summed over the batches.

    `update` is `scan_group` and jitted, and may donate the old state. Its loss gets a `Batch`. `ahead` and
    `together` are those of `prefetch`: on a CPU more steps together save the pages that each call maps again.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jsage import GraphSAGE, batches, init_state, make_update, sample_blocks
    >>> from jsage.data import digits
    >>> from jsage.losses import cross_entropy, masked_mean
    >>> graph, features, labels, train, *_ = digits()
    >>> model, optimizer = GraphSAGE(hidden=16, out=10), optax.adam(0.01)
    >>> def loss_fn(params, stats, batch, key):
    ...     (seeds, mask), h = batch.batch, model.apply(params, batch.rows, batch.blocks)
    ...     losses = cross_entropy(h, labels[seeds], mask)
    ...     return masked_mean(losses, mask), ({"loss": losses.sum(), "weight": mask.sum()}, stats)
    >>> key = jax.random.key(0)
    >>> blocks = sample_blocks(key, graph, train[:1], (5, 5))
    >>> state = init_state(key, model.init(key, jnp.zeros((1, features.shape[1])), blocks), optimizer)
    >>> loader = Loader(sampler((5, 5)), graph, features, rows=1536)
    >>> update = jax.jit(scan_group(make_update(loss_fn, optimizer)), donate_argnums=0)
    >>> state, sums = train_epoch(update, state, loader, batches(train, 50))
    >>> int(state.step), int(sums["weight"])
    (2, 100)
    """
    kept: list[dict[str, Array]] = []
    for group in loader.prefetch(state.key, state.step, batches, ahead=ahead, together=together):
        state, metrics = update(state, group)
        del group
        kept.append(jax.block_until_ready(metrics))  # only now may its rows' memory be used again
    return state, jax.tree.map(lambda *values: jnp.asarray(np.concatenate(values)).sum(0), *kept)


def _seeds(batch: Any) -> Any:
    """The seeds of a batch, or of several: what comes first in it."""
    first = batch if isinstance(batch, TimedNodes) or not isinstance(batch, tuple) else batch[0]
    return first if isinstance(first, TimedNodes) else jax.tree.leaves(batch)[0]


def _count(seeds: Any) -> int:
    """The number of batches."""
    return jax.tree.leaves(seeds)[0].shape[0]


def _planner(sample: SampleFn) -> Callable[..., _Plan]:
    """`(key, step, graph, seeds[batches, batch_size])` to what a group reads: the blocks of each step."""

    def plan(key: PRNGKey, step: Array, graph: Graph, seeds: Any) -> _Plan:
        steps = step + jnp.arange(_count(seeds))
        (first, *rest), fits = jax.lax.map(
            lambda batch: sample(jax.random.fold_in(key, batch[0]), graph, batch[1]), (steps, seeds)
        )
        if not isinstance(first, Indexed):
            raise TypeError(f"the first block must be Indexed, by node ids, got {type(first).__name__}")
        ids = jnp.concatenate([first.dst.ravel(), first.src.ravel()])
        found = distinct_hashed(ids, ids.shape[0])
        own, slots = jnp.split(found.position, [first.dst.size])
        first = first._replace(dst=own.reshape(first.dst.shape), src=slots.reshape(first.src.shape))
        return _Plan(found.ids, found.size, fits.all(), (first, *rest))

    return plan
