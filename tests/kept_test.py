"""`asvrg.fit` that was stopped goes on: the same numbers as a run that nobody disturbed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asvrg
from asvrg import simulate
from asvrg.errors import InputError
from asvrg.fitting import kept

RNG = np.random.default_rng(2)
INPUTS = RNG.normal(size=(60, 3))
DATA = (INPUTS, np.tanh(INPUTS @ np.array([1.0, -2.0, 0.5])))
OPTIONS: dict[str, Any] = {"num_epochs": 6, "inner_steps": 50, "measure_variance": True}


def loss(w: Any, sample: Any) -> jax.Array:
    row, target = sample
    return 0.5 * (jnp.tanh(row @ w["a"] + w["b"]) - target) ** 2


PARAMS = {"a": np.full(3, 0.1), "b": np.zeros(())}


class Stopped(Exception):
    """What stops a run."""


def stop_at(epoch: int) -> Any:
    def callback(reached: asvrg.FitEpoch) -> None:
        if reached.epoch == epoch:
            raise Stopped

    return callback


def check_equal(found: asvrg.FitResult, expected: asvrg.FitResult) -> None:
    for name, one, two in zip(found.history._fields, found.history, expected.history, strict=True):
        if name != "seconds":
            np.testing.assert_array_equal(one, two, err_msg=name)
            assert one.dtype == two.dtype
    assert np.all(np.diff(found.history.seconds) >= 0)
    for one, two in zip(*map(jax.tree.leaves, (found.params, expected.params)), strict=True):
        assert one.tobytes() == two.tobytes()
    np.testing.assert_equal((found.lr, found.smoothness), (expected.lr, expected.smoothness))


@pytest.mark.parametrize(
    "options", [{}, {"method": "sgd_svrg", "lr": 0.1, "pretrain_epochs": 2, "block_size": 2}]
)
def test_a_stopped_run_goes_on_between_epochs(tmp_path: Path, options: dict) -> None:
    expected = asvrg.fit(loss, PARAMS, DATA, **OPTIONS, **options)
    for epoch in (0, 2, 3):
        with pytest.raises(Stopped):
            asvrg.fit(
                loss,
                PARAMS,
                DATA,
                **OPTIONS,
                **options,
                checkpoint_dir=tmp_path,
                callback=stop_at(epoch),
            )
    seen: list[int] = []
    found = asvrg.fit(
        loss,
        PARAMS,
        DATA,
        **OPTIONS,
        **options,
        checkpoint_dir=tmp_path,
        callback=lambda reached: seen.append(reached.epoch),
    )
    assert seen == [3, 4, 5, 6]
    check_equal(found, expected)
    # A finished one is there at once, and can be extended.
    again = asvrg.fit(loss, PARAMS, DATA, **OPTIONS, **options, checkpoint_dir=tmp_path)
    check_equal(again, expected)
    assert again.trace is None
    longer = OPTIONS | {"num_epochs": 8}
    found = asvrg.fit(loss, PARAMS, DATA, **longer, **options, checkpoint_dir=tmp_path)
    check_equal(found, asvrg.fit(loss, PARAMS, DATA, **longer, **options))


def test_a_killed_run_goes_on_inside_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that was about to do an epoch again with half the step."""
    monkeypatch.setattr(simulate, "PART", 8)
    # A step that is estimated too long at first, so that epochs are thrown away.
    monkeypatch.setattr(asvrg.fitting.automatic, "felt", lambda *args: 0.02)
    expected = asvrg.fit(loss, PARAMS, DATA, **OPTIONS)
    assert expected.history.halvings.max() > 0
    take, stops = kept.Keeper.take, iter(range(1, 40))

    def stopping(keeper: kept.Keeper, position: kept.Position) -> None:
        take(keeper, position)
        keeper.save()
        stopping.calls += 1
        if position.state.inside is not None:
            stopping.inside.add(position.halvings > 0)
        if stopping.calls == stopping.at:
            stopping.at = next(stops)
            stopping.calls = 0
            raise Stopped

    stopping.calls, stopping.at, stopping.inside = 0, next(stops), set()
    monkeypatch.setattr(kept.Keeper, "take", stopping)
    monkeypatch.setattr(kept.Keeper, "is_due", lambda keeper: True)
    found = None
    while found is None:
        try:
            found = asvrg.fit(loss, PARAMS, DATA, **OPTIONS, checkpoint_dir=tmp_path)
        except Stopped:
            continue
    check_equal(found, expected)
    assert stopping.inside == {False, True}


def test_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    asvrg.fit(loss, PARAMS, DATA, num_epochs=1, lr=0.1, checkpoint_dir=tmp_path)
    for changed, names in [
        ({"lr": 0.2}, "lr"),
        ({"seed": 3, "batch_size": 5}, "batch_size=10, inner_steps=6, seed=0"),
        ({"method": "sgd"}, "method=svrg"),
    ]:
        arguments: dict[str, Any] = {"num_epochs": 2, "lr": 0.1} | changed
        with pytest.raises(InputError, match="must be the folder of the same run") as error:
            asvrg.fit(loss, PARAMS, DATA, **arguments, checkpoint_dir=tmp_path)
        assert f"of a run with {names}" in str(error.value)
    with pytest.raises(InputError, match="of a run with data="):
        asvrg.fit(
            loss, PARAMS, (INPUTS + 1, DATA[1]), num_epochs=2, lr=0.1, checkpoint_dir=tmp_path
        )
    # Longer than before, with a schedule that begins as the step did.
    found = asvrg.fit(
        loss,
        PARAMS,
        DATA,
        num_epochs=2,
        lr=lambda epoch: 0.1 / (1 + epoch),
        checkpoint_dir=tmp_path,
    )
    assert found.history.lr.tolist() == [0.1, 0.1, 0.05]


def test_numbers_of_numpy_are_kept_as_well(tmp_path: Path) -> None:
    of_numpy: dict[str, Any] = {
        "num_epochs": np.int64(2),
        "seed": np.int32(1),
        "batch_size": np.int64(5),
        "tolerance": np.float32(1e-9),
        "lr": np.float32(0.125),
    }
    found = asvrg.fit(loss, PARAMS, DATA, **of_numpy, checkpoint_dir=tmp_path)
    plain = {name: value.item() for name, value in of_numpy.items()}
    again = asvrg.fit(loss, PARAMS, DATA, **plain, checkpoint_dir=tmp_path)
    check_equal(again, found)
    assert again.trace is None


def test_another_driver_is_refused(tmp_path: Path) -> None:
    one = functools.partial(asvrg.threads.driver, num_threads=1)
    arguments: dict[str, Any] = {"lr": 0.1, "checkpoint_dir": tmp_path}
    asvrg.fit(loss, PARAMS, DATA, driver=one, num_epochs=1, **arguments)
    with pytest.raises(InputError, match="of a run with driver=asvrg"):
        asvrg.fit(loss, PARAMS, DATA, driver=simulate.driver, num_epochs=2, **arguments)
    again = functools.partial(asvrg.threads.driver, num_threads=1)
    assert asvrg.fit(loss, PARAMS, DATA, driver=again, num_epochs=2, **arguments).lr == 0.1


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ({"checkpoint_dir": ""}, "checkpoint_dir must name a folder, got an empty name."),
        ({"checkpoint_dir": __file__}, "checkpoint_dir must name a folder, got .* is a file."),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds must be a finite number of at least 0"),
    ],
)
def test_bad_arguments_are_refused(argument: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        asvrg.fit(loss, PARAMS, DATA, **argument)


def test_digests_tell_contents_dtypes_and_structures_apart() -> None:
    trees = [
        {"a": np.zeros(2)},
        {"b": np.zeros(2)},
        {"a": np.zeros(2, np.float32)},
        {"a": np.array([0.0, 1.0])},
        {"a": np.zeros((2, 1))},
        {"a": jax.random.key(0)},
        {"a": jax.random.key(1)},
    ]
    assert len({kept.digest(tree) for tree in trees}) == len(trees)
    columns = np.arange(6.0).reshape(2, 3)
    assert kept.digest(columns.T) == kept.digest(columns.T.copy())
