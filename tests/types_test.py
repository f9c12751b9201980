"""The records that cross the layers."""

from __future__ import annotations

import inspect
import re

import chex
import jax
import numpy as np
import pytest

from asvrg import estimators, mlp, objectives, sampling, types
from asvrg.types import Delta, Draws, Snapshot
from tests import problems

RECORDS = [
    record
    for module in (types, estimators, mlp, objectives, sampling)
    for record in vars(module).values()
    if inspect.isclass(record)
    and hasattr(record, "_fields")
    and record.__module__ == module.__name__
]


@pytest.mark.parametrize("record", RECORDS)
def test_docstring_describes_every_field_in_order(record) -> None:
    described = inspect.getdoc(record).partition("Attributes:\n")[2]
    assert tuple(re.findall(r"^  (\w+):", described, re.MULTILINE)) == record._fields


@pytest.mark.parametrize(
    "record",
    [
        Snapshot(),
        Snapshot(np.ones(3), np.zeros(3), (np.ones((2, 1)),)),
        Draws(np.zeros(2, np.int32), None),
        Delta(np.zeros(2, np.int32), np.ones(2)),
    ],
)
def test_records_pass_through_jit(record) -> None:
    """Type and structure included: None and () stay what they are, and are no arrays."""
    found = jax.jit(lambda record: record)(record)
    assert type(found) is type(record)
    chex.assert_trees_all_equal(found, record)


def test_records_of_functions_are_static_arguments() -> None:
    """The same object hits the compilation of the first call; another one does not."""
    traced = []

    def call(estimator: estimators.Estimator) -> int:
        traced.append(estimator)
        return 0

    jitted = jax.jit(call, static_argnums=0)
    objective = problems.get("logistic").objective
    first, second = estimators.svrg(objective), estimators.svrg(objective)
    for estimator in (first, second, first, second):
        jitted(estimator)
    assert traced == [first, second]
