"""The numbers that claims are held against, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from experiments import tables
from experiments.paper import evidence
from experiments.paper.evidence import Run
from experiments.paper.plan import Labels


def run(method: str = "svrg", workers: int = 1, setting: str = "", seed: int = 0, **columns) -> Run:
    made = {name: np.array(values, float) for name, values in columns.items()}
    made.setdefault("epoch", np.arange(float(len(next(iter(made.values()))))))
    return Run(Labels(method, workers, setting, seed), made)


def falling(seconds: Sequence[float], powers: Sequence[float], workers: int, seed: int) -> Run:
    """A run whose losses are 10 to the power of minus these."""
    losses = [10.0**-power for power in powers]
    return run("svrg", workers, "here", seed, seconds=seconds, train_loss=losses)


ONE = [falling([0, 2, 4], [0, 1, 2], 1, 0), falling([0, 4, 8], [0, 1, 2], 1, 1)]
TWO = [falling([0, 1, 2], [0, 1, 2], 2, 0), falling([0, 2, 4], [0, 1, 1.5], 2, 1)]
TARGET = 10**-1.5


def test_equation_22_by_hand():
    """Half-way between two epochs in log f: after 3 and 6 s with one worker, 1.5 and 4 s with two.

    Each seed is compared with itself, and the mean is that of the ratios.
    """
    # In the order in which they are run: by seeds, then by workers.
    one, two = evidence.time_speedups("measured", [ONE[0], TWO[0], ONE[1], TWO[1]], TARGET)
    assert (one.kind, one.setting, one.workers, one.seeds) == ("measured", "here", 1, 2)
    assert (two.kind, two.setting, two.workers, two.seeds) == ("measured", "here", 2, 2)
    assert one.target_loss == two.target_loss == TARGET
    assert (one.seconds, two.seconds) == pytest.approx((4.5, 2.75))
    assert (one.time_speedup, one.smallest, one.largest) == pytest.approx((1, 1, 1))
    assert (two.time_speedup, two.smallest, two.largest) == pytest.approx((1.75, 1.5, 2.0))
    assert (two.updates_per_s, two.mean_delay, two.max_delay) == (None, None, None)


def test_a_loss_that_one_seed_does_not_reach_has_no_speedup():
    """The mean of the others would be that of those that did well."""
    one, two = evidence.time_speedups("simulated", [*ONE, *TWO], 10**-1.6)
    assert one.seconds == pytest.approx((3.2 + 6.4) / 2)
    assert two == evidence.TimeSpeedup("simulated", "here", 2, 2, 10**-1.6)
    # Nor has what is compared with a run of one worker that does not reach it.
    short = ONE[1]._replace(columns=TWO[1].columns)
    lines = evidence.time_speedups("measured", [ONE[0], short, TWO[0], TWO[1]], 10**-1.6)
    assert [line.time_speedup for line in lines] == [None, None]


def test_the_loss_is_what_one_worker_has_after_two_thirds_of_its_epochs():
    """Of 6 epochs, after 4; of 2, where a straight line in log f is after 4 / 3."""
    six = [
        falling(range(7), [0, 1, 1.2, 1.4, power, 3, 4], 1, seed)
        for seed, power in enumerate((1.5, 2.5))
    ]
    fast = falling(range(7), [0, 3, 4, 5, 6, 7, 8], 2, 0)
    assert evidence.target_loss([*six, fast]) == pytest.approx(1e-2)
    assert evidence.target_loss([ONE[0], TWO[1]]) == pytest.approx(10 ** (-4 / 3))


def test_updates_and_delays_of_measured_runs():
    """Rates are those of whole epochs; the row before training has no delays."""

    def with_delays(of: Run, updates: int, mean: Sequence[float], most: Sequence[int]) -> Run:
        more = {"updates": [0, updates, 2 * updates], "mean_delay": mean, "max_delay": most}
        return of._replace(columns=of.columns | {k: np.array(v) for k, v in more.items()})

    runs = [with_delays(each, 10, [0, 0, 0], [0, 0, 0]) for each in ONE]
    runs += [
        with_delays(TWO[0], 10, [0, 2, 4], [0, 5, 9]),
        with_delays(TWO[1], 10, [0, 1, 3], [0, 7, 2]),
    ]
    one, two = evidence.time_speedups("measured", runs, TARGET)
    assert (one.updates_per_s, one.mean_delay, one.max_delay) == (pytest.approx(3.75), 0, 0)
    assert two.updates_per_s == pytest.approx((20 / 2 + 20 / 4) / 2)
    assert (two.mean_delay, two.max_delay) == (pytest.approx(2.5), 9)
    assert isinstance(two.max_delay, int)


@pytest.mark.parametrize(
    ("losses", "others", "epoch"),
    [
        ([4, 3, 1, 1], [4, 2, 2, 2], 2),
        ([4, 1, 3, 1], [4, 2, 2, 2], 3),  # from which on it stays below
        ([4, 1, 1, 2], [4, 2, 2, 2], math.inf),  # equal is not below
        ([4, 1, 1, 3], [4, 2, 2, 2], math.inf),
        ([3, 1, 1, 1], [4, 2, 2, 2], 0),
        ([4, 1, 1, 1], [4, 2, 2, 2], 1),
    ],
)
def test_from_which_epoch_on_a_run_stays_below_another(losses, others, epoch):
    mine, other = run(train_loss=losses), run(train_loss=others)
    assert evidence.overtakes(mine, other, "train_loss") == epoch


def test_the_ratio_where_both_have_spent_as_much():
    """The one that has spent less ends in the midst of an epoch of the other."""
    less = run(train_loss=[1, 1e-1, 1e-2, 1e-3], grad_evals=[0, 10, 20, 30])
    more = run(train_loss=[1, 1e-1, 1e-2, 1e-3], grad_evals=[0, 20, 40, 60])
    ratio = evidence.ratio_at_equal
    assert ratio(less, more, "grad_evals") == pytest.approx(1e-3 / 10**-1.5)
    assert ratio(more, less, "grad_evals") == pytest.approx(10**-1.5 / 1e-3)
    assert ratio(more, more, "grad_evals") == 1.0


@pytest.mark.parametrize(
    ("num_train", "spent", "logs", "others", "first"),
    [
        (10, [1, 2, 3], [0, -2, -4], [-0.5, -1, -1.5], 2),
        (15, [1, 2], [-1, -4], [-0.75, -1.5], 1),
        (40, [], [], [], math.inf),  # one of them does not go so far
    ],
)
def test_two_runs_after_as_many_component_gradients(num_train, spent, logs, others, first):
    """Straight lines in log f between epochs of 10 and of 20."""
    cheap = run(train_loss=[1, 1, 1e-2, 1e-4], grad_evals=[0, 10, 20, 30])
    dear = run(train_loss=[1, 1e-1, 1e-2], grad_evals=[0, 20, 40])
    found = evidence.at_equal_gradients(cheap, dear, num_train)
    for each, expected in zip(found, (logs, others), strict=True):
        np.testing.assert_array_equal(each.columns["epoch"], spent)
        np.testing.assert_allclose(np.log10(each.columns["train_loss"]), expected, atol=1e-12)
    assert evidence.overtakes(*found, "train_loss") == first


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.0, 0.3])
def test_the_slope_is_that_of_the_mean_so_far(power):
    """Of norms whose mean over s epochs is s^power, but for the first half; x^0 does not count."""
    s = np.arange(1, 21)
    sums = s * (3.0 * s**power)
    norms = np.diff(sums, prepend=0.0)
    # Others in the first half, with the same sum.
    norms[:6] = sums[5] / 6
    assert evidence.slope(run(grad_norm_sq=[1e6, *norms])) == pytest.approx(power, abs=1e-9)


def method_runs() -> list[Run]:
    """Three methods and two seeds, seed by seed as they are run."""
    ends = {"sgd": (0.4, 0.8), "svrg": (0.2, 0.2), "sgd_svrg": (0.1, 0.4)}
    found = []
    for seed in (0, 1):
        for method, of in ends.items():
            losses = [2.0, 1.0 if method == "sgd" else 1.5, of[seed]]
            cost = 1.0 if method == "sgd" else 3.0
            found.append(
                run(
                    method,
                    2,
                    "",
                    seed,
                    epoch=[0, 1, 2],
                    seconds=[0, cost, 2 * cost + seed],
                    grad_evals=[0, 10 * cost, 20 * cost],
                    train_loss=losses,
                    train_error=[0.9, 0.5, of[seed] / 2],
                    test_error=[0.9, 0.1 + seed / 10, 0.3],
                    grad_norm_sq=[9, 4, 4],
                )
            )
    return found


def test_claims_have_the_mean_and_the_range_of_the_seeds():
    lines = evidence.claims("figure1", method_runs(), 5)
    found = {(line.what, line.of): (line.mean, line.smallest, line.largest) for line in lines}
    assert len(found) == len(lines)
    assert {(line.figure, line.seeds) for line in lines} == {("figure1", 2)}
    assert found["train_loss in the end", "sgd"] == pytest.approx((0.6, 0.4, 0.8))
    assert found["train_error in the end", "svrg"] == pytest.approx((0.1, 0.1, 0.1))
    assert found["test_error in the end", "svrg"] == pytest.approx((0.3, 0.3, 0.3))
    assert found["grad_norm_sq in the end", "sgd"] == pytest.approx((4, 4, 4))
    assert found["smallest test_error", "sgd_svrg"] == pytest.approx((0.15, 0.1, 0.2))
    assert found["seconds", "svrg"] == pytest.approx((6.5, 6, 7))
    # Seed by seed: behind after epoch 1, ahead after epoch 2, but for where both are as good.
    below = "epoch from which train_loss stays below sgd's"
    assert found[below, "svrg"] == (2, 2, 2)
    assert found[below, "sgd_svrg"] == (2, 2, 2)
    assert found["epoch from which train_error stays below sgd's", "svrg"] == (2, 2, 2)
    assert found["epoch from which test_error stays below sgd's", "svrg"] == (math.inf,) * 3
    below = "epoch from which train_loss stays below svrg's"
    assert found[below, "sgd_svrg"] == (math.inf, 2, math.inf)
    assert found["epochs with train_loss below sgd's", "svrg"] == (1, 1, 1)
    assert found["epochs with test_error below sgd's", "svrg"] == (0, 0, 0)
    below = "component gradients / n from which train_loss stays below sgd's"
    assert found[below, "svrg"] == (math.inf,) * 3
    # SGD ends at 20 component gradients; SVRG is at 20 of the 30 of its first epoch there.
    at_20 = 2.0 * (1.5 / 2.0) ** (2 / 3)
    ratios = [at_20 / 0.4, at_20 / 0.8]
    expected = (np.mean(ratios), min(ratios), max(ratios))
    assert found["train_loss over sgd's at equal component gradients", "svrg"] == pytest.approx(
        expected
    )
    assert not [line for line in lines if "sgd's" in line.what and line.of == "sgd"]


def test_claims_about_two_methods_say_nothing_of_a_third():
    two = [each for each in method_runs() if each.labels.method != "sgd_svrg"]
    lines = evidence.claims("figure3", two, 5)
    assert {line.of for line in lines} == {"sgd", "svrg"}


def test_runs_come_back_from_their_csv(tmp_path):
    rng = np.random.default_rng(0)
    labels = [
        Labels("sgd", 2, "", 0),
        Labels("svrg", 2, "", 0),
        Labels("svrg", 2, "equal_links", 0),
        Labels("svrg", 2, "equal_links", 1),
        Labels("svrg", 3, "equal_links", 1),
    ]
    names = ("epoch", "seconds", "train_loss", "max_delay")
    made = [rng.normal(size=(4, len(names))).astype(np.float32).astype(float) for _ in labels]
    lines = [
        (*label, *row) for label, rows in zip(labels, made, strict=True) for row in rows.tolist()
    ]
    path = tmp_path / evidence.RUNS
    tables.write_lines(path, [(*Labels._fields, *names), *lines])
    found = evidence.read_runs(path)
    assert [each.labels for each in found] == labels
    for each, rows in zip(found, made, strict=True):
        assert list(each.columns) == list(names)
        for name, column in zip(names, rows.T, strict=True):
            np.testing.assert_array_equal(each.columns[name].astype(np.float32), column)
    stacked = evidence.values(found[:2], "seconds").astype(np.float32)
    np.testing.assert_array_equal(stacked, np.stack([made[0][:, 1], made[1][:, 1]], axis=1))


def test_simulated_runs_have_their_settings_and_workers(tmp_path):
    path = tmp_path / evidence.PREDICTED
    header = ("setting", "kind", "workers", "cores", "epoch", "seconds", "train_loss", "test_error")
    lines = [
        (setting, "simulated beyond", k, None, epoch, epoch / k, 1.0 / (1 + epoch), 0.1)
        for setting in ("equal_links", "fast_server")
        for k in (1, 16)
        for epoch in range(3)
    ]
    tables.write_lines(path, [header, *lines])
    found = evidence.read_predicted(path)
    assert [each.labels for each in found] == [
        Labels("svrg", k, setting, 0) for setting in ("equal_links", "fast_server") for k in (1, 16)
    ]
    np.testing.assert_allclose(found[1].columns["seconds"], [0, 1 / 16, 2 / 16])
    one, many = evidence.time_speedups("simulated", found[2:], 0.4)
    assert (one.setting, many.setting) == ("fast_server", "fast_server")
    assert (one.time_speedup, many.time_speedup) == pytest.approx((1, 16))
