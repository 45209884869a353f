"""Co-occurrence of neighbors against counting them one by one."""

import jax
import numpy as np
import pytest

from jsage.blocks import Indexed
from jsage.sampling import pair_counts

B, LEFT, RIGHT = 40, 5, 3
counts = jax.jit(pair_counts)


def drawn(seed: int, fanout: int) -> Indexed:
    rng = np.random.default_rng(seed)
    src = rng.integers(0, 6, (B, fanout)).astype(np.int32)
    dst, src, mask = jax.device_put((np.arange(B, dtype=np.int32), src, rng.random((B, fanout)) < 0.7))
    return Indexed(dst, src, mask, {})


def test_counts_are_those_of_lists():
    one, other = drawn(0, LEFT), drawn(1, RIGHT)
    found = counts(one, other)
    kept = [
        [row[valid].tolist() for row, valid in zip(*map(np.asarray, (x.src, x.mask)), strict=True)]
        for x in (one, other)
    ]
    for mine, theirs, block, table in ((*kept, one, found.one), (*kept[::-1], other, found.other)):
        for i in range(B):
            for k in range(block.src.shape[1]):
                node = int(np.asarray(block.src)[i, k])
                expected = [mine[i].count(node), theirs[i].count(node)] if block.mask[i, k] else [0, 0]
                assert np.asarray(table)[i, k].tolist() == expected
    assert (np.asarray(found.one)[..., 1] > 1).any()


def test_blocks_of_other_numbers_of_pairs_are_refused():
    one, other = drawn(0, LEFT), drawn(1, RIGHT)
    short = Indexed(other.dst[:3], other.src[:3], other.mask[:3], {})
    with pytest.raises(ValueError, match="blocks of 40 and 3 destinations"):
        jax.eval_shape(pair_counts, one, short)
