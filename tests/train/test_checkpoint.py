"""Round trips, refusals, full disks, and a real run that is killed and resumed."""

import errno
import gc
import logging
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers import KEY_KINDS
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jsage._internal.files import locked
from jsage.sampling import fast_key
from jsage.train import init_state, init_stopping
from jsage.train.checkpoint import latest_step, restore, save, steps


def state_of(seed=0, width=4, impl="threefry2x32", optimizer=None):
    """A state beside its early stopping, with values that depend on the seed."""
    key = jax.random.key(seed, impl=impl)
    params = {"layer": {"w": jax.random.normal(key, (3, width)), "b": jnp.full(width, seed + 0.5)}}
    state = init_state(key, params, optimizer or optax.adam(1e-3), {"mean": jnp.full(2, seed + 0.25)})
    return state._replace(step=jnp.int32(seed)), init_stopping(state)


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("impl", KEY_KINDS)
def test_a_state_comes_back_bit_for_bit(tmp_path, impl):
    saved = state_of(7, impl=impl)
    assert save(tmp_path / "new" / "run", 7, saved) == tmp_path / "new" / "run" / "7"
    back = restore(tmp_path / "new" / "run", state_of(0, impl=impl))
    assert_identical(back, saved)
    draws = [jax.random.bits(jax.random.fold_in(tree[0].key, 3), (5,)).tolist() for tree in (back, saved)]
    assert draws[0] == draws[1]


def test_every_kind_of_leaf(tmp_path):
    tree = {
        "bfloat16": jnp.arange(3, dtype=jnp.bfloat16),
        "int8, odd/name.": jnp.array([-128, 127], jnp.int8),
        "bool": jnp.array([[True], [False]]),
        "nan": jnp.array([jnp.nan, -jnp.inf, -0.0]),
        "numpy": np.array([1 / 3, 1e300]),
        "scalar": np.float64(0.1),
        "empty": jnp.zeros((0, 4)),
        "nothing": None,
        "keys": jax.random.split(fast_key(1), (2, 3)),
        "tuple": (jnp.int32(1), [jnp.uint32(2**32 - 1)]),
    }
    save(tmp_path, 0, tree)
    zeros = jax.tree.map(lambda leaf: leaf if leaf.dtype == tree["keys"].dtype else leaf * 0, tree)
    back = restore(tmp_path, zeros | {"bool": jnp.zeros((2, 1), bool)})
    assert_identical(back, tree)
    assert isinstance(back["numpy"], np.ndarray)


def test_placement_follows_the_tree_asked_for(tmp_path):
    """Sharded comes back sharded; what jax was free to move stays so."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("x")))
    save(tmp_path, 1, {"sharded": sharded, "free": jnp.ones(3), "key": jax.random.key(0)})
    back = restore(tmp_path, {"sharded": sharded * 0, "free": jnp.zeros(3), "key": jax.random.key(9)})
    assert back["sharded"].sharding == sharded.sharding
    assert back["sharded"].tolist() == list(range(16))
    assert not back["free"].committed
    total = jax.jit(lambda tree: tree["free"].sum() + tree["sharded"].sum() + jax.random.uniform(tree["key"]))
    assert 123 <= total(back) < 124


def test_the_newest_are_kept_and_any_can_be_asked_for(tmp_path):
    assert steps(tmp_path) == []
    assert latest_step(tmp_path) is None
    for step in (2, 9, 10):
        save(tmp_path, step, {"w": jnp.float32(step)}, keep=2)
    assert steps(tmp_path) == [9, 10]
    assert sorted(os.listdir(tmp_path)) == ["10", "9"]
    assert restore(tmp_path, {"w": jnp.float32(0)})["w"] == 10
    assert restore(tmp_path, {"w": jnp.float32(0)}, step=9)["w"] == 9


OTHERS = [
    (state_of(width=5), r"at 0/params/layer/b it holds float32\[4\], expected float32\[5\]"),
    (state_of(optimizer=optax.sgd(0.1)), "at 0/opt_state/0/count it holds int32.., expected nothing"),
    (state_of(impl="rbg"), "at 0/key it holds key<fry>.., expected key<rbg>.."),
    (state_of()[:1], "at 1/value it holds float32.., expected nothing"),
    ({"params": jnp.zeros(3)}, r"at params it holds nothing, expected float32\[3\]"),
]


@pytest.mark.parametrize(("like", "message"), OTHERS)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, like, message):
    save(tmp_path, 3, state_of())
    with pytest.raises(ValueError, match=f"3 is of another model: {message}; use the options of the run"):
        restore(tmp_path, like)


def test_another_dtype_is_refused(tmp_path):
    save(tmp_path, 0, {"w": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"at w it holds float32\[2\], expected bfloat16\[2\]"):
        restore(tmp_path, {"w": jnp.zeros(2, jnp.bfloat16)})


def test_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint in .*, found steps \[\]"):
        restore(tmp_path, {"w": jnp.zeros(2)})
    save(tmp_path, 5, {"w": jnp.zeros(2)})
    with pytest.raises(FileNotFoundError, match=r"expected step 4 in .*, found steps \[5\]"):
        restore(tmp_path, {"w": jnp.zeros(2)}, step=4)
    with pytest.raises(ValueError, match=r"cannot save step 5: .* already holds step 5"):
        save(tmp_path, 5, {"w": jnp.zeros(2)})
    with pytest.raises(ValueError, match="got step -1 and keep 2"):
        save(tmp_path, -1, {"w": jnp.zeros(2)})
    with pytest.raises(ValueError, match="got step 6 and keep 0"):
        save(tmp_path, 6, {"w": jnp.zeros(2)}, keep=0)
    with pytest.raises(TypeError, match="expected an array or a number at name, got a str"):
        save(tmp_path, 6, {"w": jnp.zeros(2), "name": "adam"})
    with pytest.raises(ValueError, match="there is nothing to save"):
        save(tmp_path, 6, {"w": jnp.zeros(0), "x": None})
    with pytest.raises(ValueError, match="got 2 leaves with 1 paths"):
        save(tmp_path, 6, {"a": {"b": jnp.zeros(2)}, "a/b": jnp.ones(2)})
    assert steps(tmp_path) == [5]


@pytest.mark.parametrize(
    "victim", ["*METADATA", "*/_METADATA", "*/manifest.ocdbt", "*/d/*", "*/ocdbt.process_0/d/*"]
)
def test_a_damaged_checkpoint_says_so(tmp_path, victim):
    noise = jax.random.normal(jax.random.key(0), (10_000,))
    save(tmp_path, 1, {"w": noise})
    path = save(tmp_path, 2, {"w": noise})
    for file in path.glob(victim):
        file.write_bytes(file.read_bytes()[:10])
    with pytest.raises(ValueError, match=r"2 is damaged, .* delete that folder to go back to step 1"):
        restore(tmp_path, {"w": noise})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax leaves tasks behind
def test_a_flipped_bit_anywhere_restores_the_same_numbers_or_none(tmp_path):
    """Whichever file it is in; the numbers are more than the files' own formats protect."""
    tree = {"w": jax.random.normal(jax.random.key(0), (100,)), "step": jnp.int32(3)}
    path = save(tmp_path, 1, tree)
    refused = total = 0
    for file in sorted(path.rglob("*")):
        whole = file.read_bytes() if file.is_file() else b""
        for at in range(len(whole) // 8, len(whole), max(len(whole) // 3, 1)):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            total += 1
            try:
                assert_identical(restore(tmp_path, jax.tree.map(jnp.zeros_like, tree)), tree)
            except (ValueError, FileNotFoundError):
                refused += 1
        if whole:
            file.write_bytes(whole)
    gc.collect()
    assert total > refused > total / 4
    assert_identical(restore(tmp_path, tree), tree)


def test_other_numbers_are_refused_by_name(tmp_path, monkeypatch):
    """Even if they come out of whole files."""
    save(tmp_path, 1, {"w": jnp.arange(4.0), "b": jnp.zeros(2)})
    read = ocp.CheckpointManager.restore
    monkeypatch.setattr(
        ocp.CheckpointManager, "restore", lambda *a, **k: (t := read(*a, **k)) | {"w": t["w"][[1, 0, 2, 3]]}
    )
    with pytest.raises(ValueError, match=r"1 is damaged.*at w the checksum is float32\[4\] \w+, expected"):
        restore(tmp_path, {"w": jnp.zeros(4), "b": jnp.zeros(2)})


def test_who_reads_while_another_process_deletes_an_old_one_sees_the_rest(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step, {"w": jnp.full(2, float(step))})
    look = ocp.path.step._StandardNameFormat.find_all

    def deleting(self, *args, **options):
        found = list(look(self, *args, **options))
        shutil.rmtree(tmp_path / "1", ignore_errors=True)
        return iter(found)

    monkeypatch.setattr(ocp.path.step._StandardNameFormat, "find_all", deleting)
    assert restore(tmp_path, {"w": jnp.zeros(2)})["w"].tolist() == [2, 2]
    assert steps(tmp_path) == [2]


def test_a_second_save_at_once_is_refused(tmp_path):
    save(tmp_path, 1, {"w": jnp.zeros(2)})
    with locked(tmp_path, inside=True), pytest.raises(BlockingIOError, match="is being written already"):
        save(tmp_path, 2, {"w": jnp.zeros(2)})
    assert sorted(os.listdir(tmp_path)) == ["1"]
    save(tmp_path, 2, {"w": jnp.zeros(2)})


def leave_nothing_but(folder, step, value):
    assert os.listdir(folder) == [str(step)]
    assert restore(folder, {"w": jnp.zeros(300_000)})["w"][0] == value


@pytest.fixture
def small_files():
    """No file may grow beyond 64 kB: a full disk, for this process only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_system_refuses_leaves_the_previous_checkpoint(tmp_path, small_files, caplog):
    save(tmp_path, 1, {"w": jnp.full(300_000, 1.5)})
    small_files()
    noise = {"w": jax.random.normal(jax.random.key(0), (300_000,))}
    message = r"could not write checkpoint 2 \(1.2 MB\) to .*; step 1 is intact. Free some space .*too large"
    with pytest.raises(OSError, match=message):
        save(tmp_path, 2, noise)
    assert caplog.text == "", "the exception says it all"
    leave_nothing_but(tmp_path, 1, 1.5)


@pytest.mark.parametrize("moment", ["async_save", "finalize"])
def test_a_full_disk_at_any_moment_leaves_the_previous_checkpoint(tmp_path, monkeypatch, moment):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    save(tmp_path, 1, {"w": jnp.full(300_000, 1.5)})
    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, moment, full)
        with pytest.raises(OSError, match=r"could not write checkpoint 2 .* step 1 is intact.*No space left"):
            save(tmp_path, 2, {"w": jnp.full(300_000, 2.5)})
        with pytest.raises(OSError, match=r"could not write checkpoint 2 .* there is no earlier one"):
            save(tmp_path / "first", 2, {"w": jnp.full(300_000, 2.5)})
    os.rmdir(tmp_path / "first")
    leave_nothing_but(tmp_path, 1, 1.5)
    save(tmp_path, 2, {"w": jnp.full(300_000, 2.5)}, keep=1)
    leave_nothing_but(tmp_path, 2, 2.5)


def test_what_a_killed_process_left_is_never_read_and_swept(tmp_path, monkeypatch):
    """The folder as it is at the last moment before a checkpoint is whole."""
    folder, killed = tmp_path / "run", tmp_path / "killed"
    finalize = ocp.StandardCheckpointHandler.finalize

    def copy(self, directory):
        shutil.copytree(folder, killed, dirs_exist_ok=True)
        finalize(self, directory)

    save(folder, 1, {"w": jnp.ones(3)})
    with monkeypatch.context() as patch:
        patch.setattr(ocp.StandardCheckpointHandler, "finalize", copy)
        save(folder, 2, {"w": jnp.full(3, 2.0)})
    assert len(os.listdir(killed)) == 3, "the lock, and something of step 2, are there"
    assert steps(killed) == [1]
    assert restore(killed, {"w": jnp.zeros(3)})["w"].tolist() == [1, 1, 1]
    save(killed, 3, {"w": jnp.ones(3)})
    assert sorted(os.listdir(killed)) == ["1", "3"]


def test_a_kill_while_old_ones_are_deleted_leaves_no_half_of_any(tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        raise SystemExit

    save(tmp_path, 1, {"w": jnp.ones(3)})
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            save(tmp_path, 2, {"w": jnp.ones(3)}, keep=1)
    assert steps(tmp_path) == [2]
    save(tmp_path, 3, {"w": jnp.ones(3)}, keep=1)
    assert os.listdir(tmp_path) == ["3"]


def test_logging_is_left_as_it_was(tmp_path, caplog):
    level = logging.getLogger("absl").level
    with caplog.at_level(logging.DEBUG):
        save(tmp_path, 1, {"w": jnp.ones(3)})
        restore(tmp_path, {"w": jnp.zeros(3)})
    assert [record for record in caplog.records if record.name == "absl"] == []
    assert logging.getLogger("absl").level == level
