"""The methods that the paper compares, from their flags."""

from __future__ import annotations

import pytest
from absl import flags

from asvrg.errors import InputError
from experiments import methods, problem
from experiments.methods import Step

TUNED = {"sgd": Step(0.3, 0.1), "svrg": Step(0.5, 0.0)}


def phases(*arguments: str) -> list[methods.Phase]:
    values = flags.FlagValues()
    problem.define_flags(values)
    methods.define_flags(values, pretrain_epochs=10)
    values(["binary", *arguments])
    return methods.phases(values, TUNED)


def test_steps_are_the_tuned_ones_unless_given():
    (sgd,) = phases("--method=sgd")
    (svrg,) = phases("--method=svrg")
    assert (sgd.estimator, svrg.estimator) == ("sgd", "svrg")
    assert (sgd.step, svrg.step) == (TUNED["sgd"], TUNED["svrg"])
    (sgd,) = phases("--method=sgd", "--lr=2", "--lr_decay=0.5")
    assert sgd.schedule(0) == 2.0
    assert sgd.schedule(3) == 1.0


def test_sgd_svrg_is_sgd_and_then_svrg():
    first, second = phases("--method=sgd_svrg", "--num_epochs=12")
    assert first == methods.Phase("sgd", TUNED["sgd"], 10)
    assert second == methods.Phase("svrg", TUNED["svrg"], 12)
    first, second = phases("--method=sgd_svrg", "--pretrain_lr=0.7", "--lr=0.2")
    assert (first.step, second.step) == (Step(0.7, 0.1), Step(0.2, 0.0))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--method=sgd", "--pretrain_lr=1"], "--pretrain_lr belongs to --method=sgd_svrg"),
        (["--method=sgd_svrg", "--num_epochs=10"], "must exceed --pretrain_epochs, got 10 and 10"),
        (["--method=sgd_svrg", "--pretrain_epochs=0"], "--pretrain_epochs must be a whole number"),
        (["--method=sgd", "--alpha=0.5"], "--alpha belongs to --method=svrg or sgd_svrg, got"),
        (["--alpha=nan"], "--alpha must be a finite number"),
        (["--alpha_epochs=0"], "--alpha_epochs must be a whole number of at least 1"),
        (["--lr=-1"], "--lr must be a finite number above 0"),
        (["--lr_decay=nan"], "--lr_decay must be a finite number of at least 0"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        phases(*arguments)
