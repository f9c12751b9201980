"""The plan of a simulation in read order; that it is exact stands in simulate_test.py."""

from __future__ import annotations

import numpy as np
import pytest

from asvrg import delays
from asvrg.drivers.simulate import read_order
from asvrg.errors import InputError
from asvrg.types import Trace

RANDOM = delays.uniform(500, 40, seed=3)


def test_an_update_is_computed_when_its_x_is_there_and_before_it_lands() -> None:
    """A walk through the plan: landings in their order, none of a delta that is not there."""
    plan, rows = read_order.plan(RANDOM), read_order.depth(RANDOM)
    there, landed = {}, 0
    for update, version in zip(plan.update.tolist(), plan.version.tolist(), strict=True):
        assert version == RANDOM.read_version[update]
        while landed < version:
            assert there.pop(landed % rows) == landed
            landed += 1
        assert update % rows not in there  # its row is free
        there[update % rows] = update
    assert sorted(there.values()) == list(range(landed, 500))


def test_a_worker_goes_on_with_its_copy_until_it_reads_again() -> None:
    """Two windows of two by worker 0, between them one of two by worker 1."""
    trace = Trace(np.array([0, 0, 1, 1, 0, 0]), np.array([0, 0, 0, 0, 2, 2]), sees_own=True)
    plan = read_order.plan(trace)
    assert plan.update.tolist() == [0, 1, 2, 3, 4, 5]
    assert plan.begins is not None
    assert plan.begins.tolist() == [True, False] * 3


def test_scales_go_with_their_updates() -> None:
    scaled = delays.adaptive(RANDOM, 5)
    plan = read_order.plan(scaled)
    expected = delays.adaptive_scale(delays.staleness(RANDOM), 5)[plan.update]
    np.testing.assert_array_equal(plan.scale, expected)


@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ([0, 0, 1], "got 1 for update 2 of worker 0"),  # lacks its own update 1, says it sees it
        ([0, 1, 0], "got 0 for update 2 of worker 0"),
    ],
)
def test_who_sees_its_own_updates_reads_after_they_landed(version, sentence: str) -> None:
    trace = Trace(np.zeros(3, int), np.array(version), sees_own=True)
    with pytest.raises(InputError, match=sentence):
        read_order.plan(trace)


@pytest.mark.parametrize(("lag", "rows"), [(0, 1), (1, 2), (3, 4), (4, 8), (1_000, 1_024)])
def test_rows_hold_all_that_has_not_landed(lag: int, rows: int) -> None:
    assert read_order.depth(delays.constant(2_000, lag)) == rows
    assert read_order.depth(delays.none(5), lag) == rows
