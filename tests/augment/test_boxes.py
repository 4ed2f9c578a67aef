"""Spans around a center, and the masks that they make."""

import jax.numpy as jnp
import numpy as np
import pytest

from nfnets.augment import boxes


@pytest.mark.parametrize(
    ("center", "size", "span"),
    [
        (5, 4, (3, 7)),
        (5, 5, (3, 8)),
        (5, 0, (5, 5)),
        (1, 4, (0, 3)),
        (9, 5, (7, 10)),
        (9, 1, (9, 10)),
        (4, 99, (0, 10)),
    ],
)
def test_clipped_span(center, size, span):
    start, stop = boxes.clipped_span(jnp.array([center]), jnp.int32(size), 10)
    assert (int(start[0]), int(stop[0])) == span


def test_box_mask():
    rows = jnp.array([1, 0]), jnp.array([3, 0])
    columns = jnp.array([0, 0]), jnp.array([2, 4])
    mask = np.asarray(boxes.box_mask(rows, columns, 3, 4))
    expected = np.zeros((2, 3, 4), bool)
    expected[0, 1:3, 0:2] = True  # the second box has no rows
    np.testing.assert_array_equal(mask, expected)
