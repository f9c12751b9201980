"""The records of `asvrg.fit`: what an epoch says, its history says of all epochs."""

from __future__ import annotations

import inspect
import re

from asvrg.fitting.records import FitEpoch, History, Settings


def attributes(record: type) -> dict[str, str]:
    """What the docstring says of every attribute."""
    text = inspect.cleandoc(record.__doc__ or "").partition("Attributes:\n")[2]
    return dict(re.findall(r"^  (\w+): (.+)$", text, re.MULTILINE))


def test_the_history_has_every_number_of_an_epoch() -> None:
    assert set(FitEpoch._fields) - set(History._fields) == {
        "params",
        "trace",
        "history",
        "settings",
    }
    assert [name for name in FitEpoch._fields if name in History._fields] == [*History._fields]


def test_every_field_is_described_with_its_type_in_the_history() -> None:
    for record in (FitEpoch, History, Settings):
        assert [*attributes(record)] == [*record._fields]
    whole = {"epoch", "halvings", "updates", "grad_evals", "max_delay"}
    for name, text in attributes(History).items():
        assert text.startswith(f"{'int64' if name in whole else 'float64'} [epochs + 1], ")
