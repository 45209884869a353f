"""Ask other devices about their rows: fixed shapes, every id asked once, as many rounds as it takes.

A device sorts the ids that it wants by owner, and sends each owner `capacity` distinct ones, by `all_to_all`;
the owners' answers come back the same way. Ids that did not fit go in another round, and all devices go on
until none has any left: overflow costs time, is counted, and changes no result. Everything here is of the
size of a batch, and the tables are only read.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree, Shaped

from jsage._internal.arrays import IN_BOUNDS, take
from jsage.graph import Location
from jsage.parallel.mesh import AXIS

Answer: TypeAlias = Callable[..., PyTree]
"""`local -> arrays [rows, ...]`: what an owner says about its rows; `(local, time)` where ids have times."""


class Traffic(NamedTuple):
    """What an exchange took; add them over steps."""

    distinct: Int[Array, ""]
    """How many ids this device asked for, each counted once."""
    overflow: Int[Array, ""]
    """How many of them did not fit the first round."""
    rounds: Int[Array, ""]
    """How many rounds all devices made."""
    most: Int[Array, ""]
    """The most ids that one device had for one owner: the capacity that would have done."""


class Route(NamedTuple):
    """The distinct ids that a device wants, in the order of their owners, and where each id is among them."""

    local: Int[Array, " num_ids"]
    start: Int[Array, " shards+1"]
    """`local[start[o]:start[o + 1]]` are owner `o`'s."""
    owner: Int[Array, " num_ids"]
    """Whom each id belongs to, in the order they came; ids of no owner are not asked for."""
    rank: Int[Array, " num_ids"]
    """Each id's number among its owner's, in the order they came."""
    most: Int[Array, ""]
    """The most distinct ids that any device wants of any owner."""
    time: Shaped[Array, " num_ids"] | None = None
    """The time that goes with each of `local`, where ids have one: an id at two times is two."""


def plan_route(ids: Location, axis: str = AXIS, time: Shaped[Array, " num_ids"] | None = None) -> Route:
    """Sort a batch's ids by owner, repeated ones out; an owner that is no device of the mesh owns nothing.

    With a `time` for each, owners are told it too. For use inside `on_mesh`, as all that follows.

    >>> from jsage.parallel import make_mesh, on_mesh, split
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> ids = split(Location(jnp.array([0, 0, 1, 0]), jnp.array([7, 4, 0, 7])), mesh)
    >>> route = jax.jit(on_mesh(plan_route, mesh, (ids,)))(ids)
    >>> route.local[:2], route.rank[jnp.array([0, 1, 3])], route.start
    (Array([4, 7], dtype=int32), Array([1, 0, 1], dtype=int32), Array([0, 2], dtype=int32))
    """
    shards = jax.lax.axis_size(axis)
    came = jnp.arange(ids.owner.shape[0], dtype=jnp.int32)
    keys = (ids.owner, ids.local) if time is None else (ids.owner, ids.local, time)
    *keys, came = jax.lax.sort((*keys, came), num_keys=len(keys), is_stable=False)
    owner, *told = keys
    changed = reduce(jnp.logical_or, (key[1:] != key[:-1] for key in keys))
    fresh = jnp.concatenate([jnp.array([True]), changed]) & (owner < shards)
    count = jnp.cumsum(fresh, dtype=jnp.int32)
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), count])
    start = take(before, jnp.searchsorted(owner, jnp.arange(shards + 1, dtype=owner.dtype)))
    rank = count - 1 - take(start, jnp.minimum(owner, shards))
    # Two more sorts of a batch's size, where a CPU would scatter: an accelerator sorts faster.
    place = jnp.where(fresh, count, came.size + 1)
    _, local, *times = jax.lax.sort((place, *told), num_keys=1, is_stable=False)
    _, rank = jax.lax.sort((came, rank), num_keys=1, is_stable=False)
    return Route(local, start, ids.owner, rank, jax.lax.pmax(jnp.diff(start).max(), axis), *times)


def gather_remote(route: Route, answer: Answer, capacity: int, axis: str = AXIS) -> PyTree:
    """What the owners say about every id: arrays `[num_ids, ...]`, in the order the ids came.

    Each round an owner hears `capacity` ids from every device. Rows of ids without an owner are arbitrary.
    Raises ValueError for a capacity below 1.

    >>> from jsage.parallel import make_mesh, on_mesh, split
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> table = split(jnp.array([10, 20, 30]), mesh)
    >>> ids = split(Location(jnp.array([0, 0]), jnp.array([2, 1])), mesh)
    >>> def fetch(table, ids):
    ...     return gather_remote(plan_route(ids), lambda local: table[local], capacity=2)
    >>> jax.jit(on_mesh(fetch, mesh, (table, ids)))(table, ids)
    Array([30, 20], dtype=int32)
    """
    capacity = _checked(route, capacity)

    def turn(number: Array | int) -> tuple[Array, PyTree]:
        here, slot = _slots(route, number, capacity)
        wanted = _wanted(route, number, capacity, route.local)
        times = [] if route.time is None else [_wanted(route, number, capacity, route.time)]
        rows = answer(*(_swap(told, axis) for told in (wanted, *times)))
        return here, jax.tree.map(lambda x: take(_swap(x, axis), slot), rows)

    def again(number: Array, known: PyTree) -> PyTree:
        here, new = turn(number)
        return jax.tree.map(lambda x, y: jnp.where(_beside(here, x), x, y), new, known)

    # The first round is in the loop too: with one before it, a TPU copied small tables between the two.
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: turn(0)[1]))
    return jax.lax.fori_loop(0, _rounds(route, capacity), again, none)


def scatter_add_remote(
    route: Route, rows: Array, capacity: int, add: Callable[[Any, Array, Array], Any], start: Any, axis: str
) -> Any:
    """Send a row of every id to its owner, rows of one id summed: the transpose of `gather_remote`.

    `add(state, local, rows)` takes in what came; it is called once a round, and slots that nothing was sent
    in hold zeros for some row.

    >>> from jsage.parallel import make_mesh, on_mesh, split
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> rows, ids = split((jnp.ones((2, 1)), Location(jnp.array([0, 0]), jnp.array([2, 2]))), mesh)
    >>> def count(rows, ids):
    ...     add = lambda table, local, rows: table.at[local].add(rows)
    ...     return scatter_add_remote(plan_route(ids), rows, 2, add, jnp.zeros((3, 1)), "data")
    >>> jax.jit(on_mesh(count, mesh, (rows, ids)))(rows, ids).ravel()
    Array([0., 0., 2.], dtype=float32)
    """
    capacity = _checked(route, capacity)
    slots = (route.start.shape[0] - 1) * capacity

    def turn(number: Array, state: Any) -> Any:
        here, slot = _slots(route, number, capacity)
        sent = jnp.zeros((slots, *rows.shape[1:]), rows.dtype)
        sent = sent.at[slot].add(jnp.where(_beside(here, rows), rows, 0), **IN_BOUNDS)
        wanted = _wanted(route, number, capacity, route.local)
        return add(state, _swap(wanted, axis), _swap(sent, axis))

    return jax.lax.fori_loop(0, _rounds(route, capacity), turn, start)


def traffic(route: Route, capacity: int) -> Traffic:
    """What an exchange of these ids takes.

    >>> from jsage.parallel import make_mesh, on_mesh, split
    >>> mesh = make_mesh(jax.devices()[:1])
    >>> ids = split(Location(jnp.array([0, 0, 0]), jnp.array([2, 1, 2])), mesh)
    >>> jax.jit(on_mesh(lambda ids: traffic(plan_route(ids), 1), mesh, (ids,)))(ids)
    Traffic(distinct=Array(2, ...), overflow=Array(1, ...), rounds=Array(2, ...), most=Array(2, ...))
    """
    capacity = _checked(route, capacity)
    counts = jnp.diff(route.start)
    overflow = jnp.maximum(counts - capacity, 0).sum()
    return Traffic(route.start[-1], overflow, _rounds(route, capacity), route.most)


def _checked(route: Route, capacity: int) -> int:
    if capacity < 1:
        raise ValueError(
            f"a capacity is a positive number of ids for each owner, got {capacity}: "
            "measure_capacities gives one"
        )
    return min(capacity, route.rank.shape[0])


def _rounds(route: Route, capacity: int) -> Int[Array, ""]:
    """The same number on all devices."""
    return jnp.maximum((route.most + capacity - 1) // capacity, 1)


def _wanted(route: Route, number: Array | int, capacity: int, told: Array) -> Shaped[Array, " slots"]:
    """What to tell owners in a round, slot by slot, owner by owner; 0 in the slots left over."""
    slot = jnp.arange(capacity, dtype=jnp.int32)[None] + number * capacity
    place = route.start[:-1, None] + slot
    valid = place < route.start[1:, None]
    return jnp.where(valid, take(told, jnp.where(valid, place, 0)), 0).ravel()


def _slots(route: Route, number: Array | int, capacity: int) -> tuple[Bool[Array, " n"], Int[Array, " n"]]:
    """Which ids a round brings answers for, and in which slot."""
    slot = route.rank - number * capacity
    here = (slot >= 0) & (slot < capacity) & (route.owner < route.start.shape[0] - 1)
    return here, jnp.where(here, route.owner * capacity + slot, 0)


def _swap(x: Array, axis: str) -> Array:
    """Slots `[owner, capacity]` for slots `[asker, capacity]`, or back."""
    return jax.lax.all_to_all(x, axis, split_axis=0, concat_axis=0, tiled=True)


def _beside(here: Bool[Array, " n"], rows: Array) -> Array:
    return here.reshape(-1, *(1,) * (rows.ndim - 1))
