"""Scalings of rows and columns beside NumPy."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jsage.recipes import Scaling, fit_scaling

TABLE = np.array([[1.0, -3.0, 0.0], [0.0, 0.0, 0.0], [2e5, 0.0, 1e5]])


@pytest.mark.parametrize(("kind", "order"), [("rows", 2), ("sums", 1)])
def test_rows_have_size_1_by_their_norm(kind, order):
    scaling = fit_scaling(TABLE, kind=kind)
    found = scaling(TABLE)
    assert_allclose(np.linalg.norm(found, order, axis=1), [1, 0, 1], rtol=1e-6)
    assert_allclose(found[0] / found[0, 0], TABLE[0], rtol=1e-6)
    assert found.dtype == np.float32
    assert_array_equal(Scaling.from_json(scaling.to_json())(TABLE), found)
