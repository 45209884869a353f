"""The same under any jax that is allowed; `.ci/run floor` runs it on the lowest."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from jsage._internal.versions import get_opaque_trace_state, has_key_kind, make_varying, varying_axes


def test_an_array_that_is_made_to_vary_says_so_and_its_gradient_is_summed():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    seen = []

    def part(x, y):
        varying = make_varying(x, ("x",))
        seen.extend(varying_axes(jax.typeof(one)) for one in (x, varying, y))
        return jax.lax.psum((varying * y).sum(), "x")

    specs = PartitionSpec(), PartitionSpec("x")
    total = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    gradient = jax.jit(jax.grad(total))(np.ones(2, np.float32), np.arange(4, dtype=np.float32))
    assert seen == [frozenset(), {"x"}, {"x"}]
    np.testing.assert_array_equal(gradient, [2, 4])


def test_a_trace_differs_from_the_one_around_it():
    outside, inside = get_opaque_trace_state(), []
    jax.eval_shape(lambda x: inside.append(get_opaque_trace_state() == outside), jnp.float32(0))
    assert inside == [False]
    assert get_opaque_trace_state() == outside


def test_kinds_of_keys_are_those_that_jax_makes():
    assert has_key_kind("threefry2x32")
    assert not has_key_kind("threefry4x64")
