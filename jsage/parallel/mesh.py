"""A mesh of devices, and how arrays lie on it: a copy on each, or a part on each.

All devices run one program (`jax.shard_map`), each on its part of what is split and on its copy of the rest.

A mesh whose axes are explicit, as `jax.make_mesh` makes them, is taken as one of automatic axes over the same
devices, unless `jax.set_mesh` has set it.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXIS = "data"
"""The mesh axis that seeds and tables are split over."""

Tree = TypeVar("Tree")


def make_mesh(devices: Sequence[Any] | None = None, axis: str = AXIS) -> Mesh:
    """A mesh of one axis over `devices`, all that there are unless given.

    >>> make_mesh(jax.devices()[:1]).axis_names
    ('data',)
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices)


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """The arrays of a tree with a copy on each device: parameters, small tables, keys.

    Philox keys become the Threefry keys of the same words: XLA compiles no Philox for several devices. Where
    there are several processes, all of them call this with equal values; `split` too.

    >>> replicate(jax.numpy.ones(3), make_mesh()).is_fully_replicated
    True
    """
    return _put(tree, NamedSharding(_automatic(mesh), PartitionSpec()))


def split(tree: Tree, mesh: Mesh, dim: int = 0) -> Tree:
    """The arrays of a tree in equal parts along axis `dim`, device `i` holding part `i`.

    `dim=1` splits an epoch's batches `[num_batches, batch_size]`: each device has its slice of every batch.
    Raises ValueError for an axis that does not divide: pad it, or take a batch size that does.

    >>> from jsage.sampling import batches
    >>> seeds, mask = split(batches(jax.numpy.arange(5), 2), make_mesh(jax.devices()[:1]), dim=1)
    >>> tuple(seeds.sharding.spec)
    (None, 'data')
    """
    (axis,) = mesh.axis_names
    for array in jax.tree.leaves(tree):
        if array.ndim <= dim or array.shape[dim] % mesh.size:
            raise ValueError(
                f"axis {dim} must be a multiple of the {mesh.size} devices that it is split over, got shape "
                f"{array.shape}: take a batch size that is one"
            )
    return _put(tree, NamedSharding(_automatic(mesh), PartitionSpec(*[None] * dim, axis)))


def specs(tree: PyTree) -> PyTree:
    """How each array of a tree lies on its mesh, in the form that `jax.shard_map` takes.

    Raises ValueError for an array that lies on no mesh.

    >>> specs([split(jax.numpy.arange(8), make_mesh(jax.devices()[:1]))]) == [PartitionSpec("data")]
    True
    """

    def spec(array: Any) -> PartitionSpec:
        sharding = getattr(array, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            where = type(array).__name__ if sharding is None else sharding
            raise ValueError(
                f"expected arrays on a mesh, got one of shape {np.shape(array)} on {where}: pass what "
                "replicate(x, mesh) or split(x, mesh) returned"
            )
        return sharding.spec

    return jax.tree.map(spec, tree)


def assemble(part: Callable[[int], PyTree], mesh: Mesh) -> PyTree:
    """Split arrays from their parts: `part(i)`, a tree of arrays of equal shapes, goes to device `i`.

    Only the parts of this process's devices are asked for, one after the other.

    >>> mesh = make_mesh(jax.devices()[:1])
    >>> assemble(lambda shard: {"ids": jax.numpy.arange(3) + shard}, mesh)["ids"]
    Array([0, 1, 2], dtype=int32)
    """
    (axis,) = mesh.axis_names
    here = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    parts = [jax.device_put(part(i), mesh.devices.flat[i]) for i in here]

    def join(*arrays: jax.Array) -> jax.Array:
        shape = (mesh.size * arrays[0].shape[0], *arrays[0].shape[1:])
        sharding = NamedSharding(_automatic(mesh), PartitionSpec(axis))
        return jax.make_array_from_single_device_arrays(shape, sharding, list(arrays))

    return jax.tree.map(join, *parts)


def on_mesh(
    function: Callable[..., Any], mesh: Mesh, like: Sequence[PyTree], out_specs: PyTree = None
) -> Callable[..., Any]:
    """`function` run by every device on its own parts of the arguments, to be jitted.

    `like` are arguments, or their shapes with a sharding: arrays that lie as those of each call will.
    `out_specs` tells how results lie; None: they are the same on all devices. Inside, the collectives of
    `jsage.parallel` are available, and Philox keys are the Threefry keys of the same words, as `replicate`
    makes them. Raises ValueError if an array of `like` lies on no mesh.

    >>> mesh = make_mesh()
    >>> seeds = split(jax.numpy.arange(16), mesh)
    >>> total = on_mesh(lambda seeds: jax.lax.psum(seeds.sum(), "data"), mesh, (seeds,))
    >>> jax.jit(total)(seeds)
    Array(120, dtype=int32)
    """
    out_specs = PartitionSpec() if out_specs is None else out_specs
    # Unchecked: whether a value varies over devices is not tracked, and `psum` is its own transpose.
    return jax.shard_map(
        lambda *given: function(*jax.tree.map(_threefry, given)),
        mesh=_automatic(mesh),
        in_specs=specs(tuple(like)),
        out_specs=out_specs,
        check_vma=False,
    )


def _automatic(mesh: Mesh) -> Mesh:
    """The mesh, its axes automatic: jitted functions read tables on it by ids that are split."""
    if not jax.sharding.get_abstract_mesh().empty:
        return mesh
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _threefry(array: Any) -> Any:
    """A key that compiles on several devices, and other arrays as they are."""
    if not _is_key(array) or not str(jax.random.key_impl(array)).startswith("philox"):
        return array
    return jax.random.wrap_key_data(jax.random.key_data(array), impl="threefry2x32")


def _is_key(array: Any) -> bool:
    return isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _put(tree: Tree, sharding: NamedSharding) -> Tree:
    """Arrays on the devices of all processes, of which each puts its own parts of a value that all have."""
    tree = jax.tree.map(_threefry, tree)
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def put(array: Any) -> jax.Array:
        if _is_key(array):
            return jax.random.wrap_key_data(put(jax.random.key_data(array)), impl=jax.random.key_impl(array))
        whole = np.asarray(array)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    if all(isinstance(x, jax.Array) and not x.is_fully_addressable for x in jax.tree.leaves(tree)):
        return jax.jit(lambda tree: tree, out_shardings=sharding)(tree)
    return jax.tree.map(put, tree)
