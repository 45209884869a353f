"""One copy of a node a hop: frontiers compacted inside the step, with trees where a batch does not fit.

A tree repeats a node for every slot that drew it, and layers compute each copy. Compaction gives each node
of a frontier one row, so its neighbors are drawn once and its row is computed once. The number of rows is
fixed beforehand (`measure_capacities`); a batch with more distinct nodes runs on trees. Either way every
node's neighbors are an exact uniform sample; what differs is that copies of a node share theirs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from jsage._internal.arrays import IN_BOUNDS, take
from jsage.blocks import Indexed
from jsage.blocks.layout import Block
from jsage.graph import GraphBefore
from jsage.graph.adjacency import Adjacency
from jsage.graph.as_of import check_one_time
from jsage.sampling.draws import without_replacement
from jsage.sampling.neighbors import append_slots, sample_blocks, sample_neighbors, stack_hops
from jsage.sampling.seeds import epoch
from jsage.sampling.temporal import TimedNodes, append_times, sample_temporal_blocks
from jsage.typing import AnyDraw, HostArray, LossFn, Metrics, PRNGKey

Capacities: TypeAlias = Sequence[int | None]
Seeds: TypeAlias = Int[HostArray, " num_seeds"] | TimedNodes
"""Node ids, or nodes each as of a time of its own."""
Loss: TypeAlias = tuple[Float[Array, ""], tuple[Metrics, PyTree]]
BlockLossFn: TypeAlias = Callable[[PyTree, PyTree, tuple[Block, ...], Any, PRNGKey], Loss]
"""`(params, stats, blocks, batch, key) -> (loss, (metrics, stats))`"""


class Distinct(NamedTuple):
    """Distinct ids and where each of the given ids is among them."""

    ids: Int[Array, " capacity"]
    """The distinct ids in the order they came, then the first of them again: rows that are never read."""
    position: Int[Array, " num_ids"]
    """`ids[position]` are the given ids, if `size <= capacity`."""
    size: Int[Array, ""]
    time: Shaped[Array, " capacity"] | None = None
    """The time of each, where ids have one: an id at two times is two."""


def distinct_hashed(
    ids: Int[Array, " num_ids"], capacity: int, time: Shaped[Array, " num_ids"] | None = None
) -> Distinct:
    """The distinct ids among `ids`, without a sort and without a table of all nodes; or pairs with a `time`.

    Each id writes its position into a slot of a hash table of about eight slots an id, and reads back who
    holds the slot. An id that finds another one there stays a copy of its own (some in a thousand): one row
    more, nothing wrong.

    >>> import jax.numpy as jnp
    >>> found = distinct_hashed(jnp.array([7, 3, 7, 7]), capacity=3)
    >>> found.ids, found.position, found.size
    (Array([7, 3, 7], dtype=int32), Array([0, 1, 0, 0], dtype=int32), Array(2, dtype=int32))
    """
    bits = (8 * ids.shape[0]).bit_length()
    hashed = ids.astype(jnp.uint32)
    if time is not None:
        floats = jnp.issubdtype(time.dtype, jnp.floating)
        words = jax.lax.bitcast_convert_type(time.astype(jnp.float32), jnp.uint32) if floats else time
        hashed = (hashed ^ words.astype(jnp.uint32) * jnp.uint32(2246822519)) + (hashed >> 15)
    hashed = hashed * jnp.uint32(2654435769)  # Knuth's multiplicative hash
    slot = (hashed >> (32 - bits)).astype(jnp.int32)
    here = jnp.arange(ids.shape[0], dtype=jnp.int32)
    empty = jnp.full(1 << bits, ids.shape[0], jnp.int32)
    holder = take(empty.at[slot].min(here, **IN_BOUNDS), slot)
    same = take(ids, holder) == ids
    holder = jnp.where(same if time is None else same & (take(time, holder) == time), holder, here)
    first = holder == here
    rank = jnp.cumsum(first, dtype=jnp.int32) - 1
    place = jnp.where(first, rank, capacity)
    kept = jnp.full(capacity, ids[0]).at[place].set(ids, mode="drop")
    position, size = jnp.minimum(take(rank, holder), capacity - 1), rank[-1] + 1
    if time is None:
        return Distinct(kept, position, size)
    return Distinct(kept, position, size, jnp.full(capacity, time[0]).at[place].set(time, mode="drop"))


def sample_compact_blocks(
    key: PRNGKey,
    graph: Adjacency,
    seeds: Seeds,
    fanouts: Sequence[int],
    capacities: Capacities,
    *,
    draw: AnyDraw = without_replacement,
) -> tuple[tuple[Block, ...], Bool[Array, ""]]:
    """`sample_blocks` with compacted frontiers, and whether they all fitted: use the blocks only if so.

    `capacities[i]` is the number of rows for the nodes met within `i + 1` hops, one for each hop but the
    last, whose neighbors are read from the feature table; None leaves that frontier a tree.

    `TimedNodes` are read as of a time of each, as `sample_temporal_blocks` does, a row being of a node at one
    time: before it, or as a view says, `up_to(graph, 0)`, whose own time then counts for nothing. Other seeds
    take a view of one time for all, else ValueError.

    >>> import jax, jax.numpy as jnp
    >>> from jsage.graph import from_edges
    >>> graph = from_edges(src=[1, 2, 0], dst=[0, 0, 1], num_nodes=3)
    >>> (first, last), fits = sample_compact_blocks(
    ...     jax.random.key(0), graph, jnp.array([0, 1]), fanouts=(2, 3), capacities=(3,)
    ... )
    >>> first.dst, last.src, bool(fits)
    (Array([0, 1, 2], dtype=int32), Array([[1, 2], [0, 1]], dtype=int32), True)
    """
    if len(capacities) != len(fanouts) - 1:
        raise ValueError(
            f"{len(fanouts)} fanouts need {len(fanouts) - 1} capacities, one for each hop but the last, "
            f"got {len(capacities)}: measure_capacities gives them"
        )
    blocks, counts = _sample(key, graph, seeds, fanouts, capacities, draw)
    limits = [capacity for capacity in capacities if capacity is not None]
    fits = jnp.array([count <= limit for count, limit in zip(counts, limits, strict=True)])
    return blocks, jnp.all(fits)


def deduplicated_loss(
    loss: BlockLossFn,
    graph: Adjacency,
    fanouts: Sequence[int],
    capacities: Capacities,
    *,
    draw: AnyDraw = without_replacement,
) -> LossFn:
    """A loss for `make_update` that samples compacted blocks, and trees when a batch does not fit.

    `batch` is `(seeds, ...)`, of ids or `TimedNodes`. Both programs are compiled once and `lax.cond` picks
    one a step, with its gradient; only `params` may be differentiated. Make it inside the jitted function, so
    that the graph is an argument there.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jsage import GraphSAGE, init_state, make_update
    >>> from jsage.data import digits
    >>> from jsage.losses import cross_entropy, masked_mean
    >>> graph, features, labels, train, *_ = digits()
    >>> model = GraphSAGE(hidden=16, out=10)
    >>> def loss(params, stats, blocks, batch, key):
    ...     losses = cross_entropy(model.apply(params, features, blocks), labels[batch[0]], batch[1])
    ...     return masked_mean(losses, batch[1]), ({"loss": losses.sum()}, stats)
    >>> blocks, _ = sample_compact_blocks(jax.random.key(0), graph, train, (5, 5), (384,))
    >>> params = model.init(jax.random.key(1), features, blocks)
    >>> update = make_update(deduplicated_loss(loss, graph, (5, 5), (384,)), optax.adam(0.01))
    >>> state = init_state(jax.random.key(2), params, optax.adam(0.01))
    >>> state, sums = jax.jit(update)(state, (train, jnp.ones(100, bool)))
    """

    def loss_fn(params: PyTree, stats: PyTree, batch: Any, key: PRNGKey) -> Loss:
        draw_key, key = jax.random.split(key)
        seeds = batch[0]
        blocks, fits = sample_compact_blocks(draw_key, graph, seeds, fanouts, capacities, draw=draw)

        def small(params: PyTree) -> Loss:
            return loss(params, stats, blocks, batch, key)

        def large(params: PyTree) -> Loss:
            sample = partial(_temporal_trees if isinstance(seeds, TimedNodes) else sample_blocks, draw=draw)
            trees = sample(draw_key, graph, seeds, fanouts)
            return loss(params, stats, trees, batch, key)

        return _either(fits, small, large, params)

    return loss_fn


def _temporal_trees(
    key: PRNGKey, graph: Any, seeds: TimedNodes, fanouts: Sequence[int], *, draw: AnyDraw
) -> tuple[Block, ...]:
    """Trees of what compacted frontiers are of."""
    events = graph.graph if isinstance(graph, GraphBefore) else graph
    return sample_temporal_blocks(
        key, events, seeds, fanouts, draw=draw, visible=lambda _, time: _at(graph, time)
    )


def _at(graph: Any, time: Array) -> GraphBefore:
    """A graph before these times, or a view of these times instead of its own."""
    return graph._replace(time=time) if isinstance(graph, GraphBefore) else GraphBefore(graph, time)


def _either(
    fits: Array, small: Callable[[PyTree], Loss], large: Callable[[PyTree], Loss], params: PyTree
) -> Loss:
    """`small(params)` or `large(params)`, the gradient taken inside the branch.

    A `lax.cond` differentiated from outside fills the residuals of the branch not taken with zeros.
    """

    @jax.custom_vjp
    def run(params):
        return jax.lax.cond(fits, small, large, params)

    def forward(params):
        branches = (jax.value_and_grad(branch, has_aux=True) for branch in (small, large))
        return jax.lax.cond(fits, *branches, params)

    def backward(grads, cotangent):
        return (jax.tree.map(lambda grad: grad * cotangent[0].astype(grad.dtype), grads),)

    run.defvjp(forward, backward)
    return run(params)


def measure_capacities(
    key: PRNGKey,
    graph: Adjacency,
    nodes: Seeds,
    batch_size: int,
    fanouts: Sequence[int],
    *,
    draw: AnyDraw = without_replacement,
) -> tuple[int | None, ...]:
    """Capacities that random batches of `nodes` fit: the most of 8 batches and 4 %; on the host, once.

    A frontier that compaction would shrink by less than 7 % stays a tree (None).

    >>> import jax, jax.numpy as jnp
    >>> from jsage.data import digits
    >>> dataset = digits()
    >>> measure_capacities(jax.random.key(0), dataset.graph, dataset.train, 100, fanouts=(10, 10))
    (896,)
    """
    timed = isinstance(nodes, TimedNodes)
    order = epoch(key, jnp.arange(len(nodes.nodes)) if timed else nodes, batch_size)[0][:8]
    seeds: Any = jax.tree.map(lambda x: x[order], nodes) if timed else order
    keys = jax.random.split(key, order.shape[0])
    rooms = [int(size) for size in batch_size * np.cumprod([1 + fanout for fanout in fanouts[:-1]])]
    capacities: list[int | None] = list(rooms)
    while True:  # without one frontier's compaction the next one meets more nodes
        tried = [room if capacity else None for room, capacity in zip(rooms, capacities, strict=True)]

        def count(graph: Adjacency, batch: tuple[PRNGKey, Any], tried: Capacities = tried) -> list[Array]:
            return _sample(batch[0], graph, batch[1], fanouts, tried, draw)[1]

        counts = jax.jit(lambda graph, batches, f=count: jax.lax.map(partial(f, graph), batches))
        most = iter([int(found.max()) for found in counts(graph, (keys, seeds))])
        capacities = _worthwhile([size and next(most) for size in tried], batch_size, fanouts)
        if [bool(size) for size in tried] == [bool(size) for size in capacities]:
            return tuple(capacities)


def _worthwhile(most: Sequence[int | None], rows: int, fanouts: Sequence[int]) -> list[int | None]:
    """Rounded capacities, None where the frontier before has hardly more slots."""
    capacities: list[int | None] = []
    for nodes, fanout in zip(most, fanouts, strict=False):
        slots = rows * (1 + fanout)
        room = nodes and -(-int(1.04 * nodes) // 128) * 128
        capacities.append(room if room and room < 0.93 * slots else None)
        rows = capacities[-1] or slots
    return capacities


class _Rows(NamedTuple):
    """The rows of a frontier; those that are not valid draw nothing (None: all are)."""

    ids: Array
    valid: Array | None
    time: Array | None


def _sample(
    key: PRNGKey,
    graph: Adjacency,
    seeds: Seeds,
    fanouts: Sequence[int],
    capacities: Capacities,
    draw: AnyDraw,
) -> tuple[tuple[Block, ...], list[Array]]:
    """The blocks, and the number of distinct nodes of each frontier that is compacted."""
    timed, counts = isinstance(seeds, TimedNodes), []
    if not timed:
        check_one_time(graph, "a compacted frontier")

    def hop(key: PRNGKey, frontier: _Rows, size: tuple[int, int | None]) -> Indexed:
        view = graph if frontier.time is None else _at(graph, frontier.time)
        block = sample_neighbors(key, view, frontier.ids, size[0], draw=draw)
        if frontier.valid is None:
            return block
        valid = frontier.valid[:, None]
        return block._replace(src=jnp.where(valid, block.src, block.dst[:, None]), mask=block.mask & valid)

    def extend(frontier: _Rows, block: Indexed, size: tuple[int, int | None]) -> tuple[_Rows, Block]:
        capacity, (ids, tree) = size[1], append_slots(frontier.ids, block)
        time = None if frontier.time is None else append_times(frontier.time, block)
        if capacity is None:
            valid = None if frontier.valid is None else tree.read(frontier.valid, ids.shape[0])
            return _Rows(ids, valid, time), tree
        found = distinct_hashed(ids, capacity, time)
        counts.append(found.size)
        own, slots = jnp.split(found.position, [block.num_dst])
        rows = _Rows(found.ids, jnp.arange(capacity) < found.size, found.time)
        return rows, Indexed(own, slots.reshape(block.src.shape), block.mask, block.edge_data)

    sizes = tuple(zip(fanouts, (*capacities, None), strict=True))
    given: Any = seeds
    start = _Rows(given.nodes, None, given.time) if timed else _Rows(given, None, None)
    return stack_hops(key, start, sizes, hop, extend=extend), counts
