"""Every flag of every binary, with values that it must refuse: a sentence, exit code 2, no file.

A binary checks all of its flags before it claims the folder of its results; what is accepted here
ends there. Those that print a table alone end with their data set.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from absl import flags

import benchmarks.__main__ as contest
from benchmarks import (
    full_gradient,
    inner_iteration,
    profiles,
    scaling,
    simulator,
    updates,
    windows,
)
from experiments import (
    alpha_svrg,
    draw_figures,
    extract_features,
    flag_errors,
    folders,
    launch,
    predict_speedup,
    recording,
    replay,
    reproduce,
    theorems,
    theory_report,
    train_distributed,
    train_shared,
    tune,
)
from experiments.cluster import __main__ as cluster
from experiments.examples import comparison, convnet, equinox_mlp, logistic, randomness, transformer
from tests import small_files

pytestmark = pytest.mark.timeout(60)

NETWORK = ("--num_train=40", "--num_test=20", "--hidden=4")
TRAINED = (*NETWORK, "--num_epochs=1", "--inner_steps=2", "--block_size=8")
# Of every binary the flags with which it gets as far as its work.
BINARIES: dict[ModuleType, tuple[str, ...]] = {
    train_shared: TRAINED,
    theory_report: TRAINED,
    predict_speedup: TRAINED,
    alpha_svrg: (*NETWORK, "--dataset=digits", "--batch_size=2"),
    tune: (
        *TRAINED,
        *("--dataset=digits", "--num_epochs=2", "--pretrain_epochs=1", "--delay=1"),
    ),
    theorems: NETWORK,
    simulator: (*NETWORK, "--block_size=8", "--inner_steps=2"),
    inner_iteration: (*NETWORK, "--block_size=8", "--inner_steps=2"),
    windows: (*NETWORK, "--block_size=8", "--inner_steps=2"),
    full_gradient: NETWORK,
    profiles: (*NETWORK, "--block_size=8", "--read_period=2"),
    scaling: (*NETWORK, "--block_size=8", "--inner_steps=2", "--workers=1"),
    contest: (*NETWORK, "--block_size=8", "--inner_steps=2", "--read_period=2"),
    logistic: ("--num_train=40",),
    equinox_mlp: ("--num_train=40",),
    convnet: ("--num_train=40",),
    transformer: ("--num_train=40", "--length=4"),
    randomness: (),
}
# These start processes, need what a test has not, or have no numbers: they get values that no flag
# parses.
PARSED_ONLY = (
    train_distributed,
    updates,
    extract_features,
    replay,
    cluster,
    reproduce,
    draw_figures,
)

HUGE = str(10**18)
REFUSED = {
    "int": ("-1", "0", HUGE, "nan", "x", "1.5", ""),
    "float": ("nan", "inf", "-1", "0", "x", ""),
    "list": ("0", HUGE, "-1", "nan", "x,1", ","),
    "enum": ("misspelt", ""),
    "bool": ("perhaps",),
}
# What is accepted of these, in whichever binary the flag is.
ACCEPTED: dict[str, set[str]] = {
    "alpha": {"0", "-1", HUGE},
    "block_size": {"0"},
    "cores": {"0"},
    "curve_rounds": {"0"},
    "delay": {"0"},
    "l2": {"0"},
    "latency": {"0"},
    "lr": {HUGE},
    "lr_decay": {"0"},
    "max_delay": {"0"},
    "pretrain_lr_decay": {"0"},
    "replay": {"0"},
    "seed": {"0"},
}
# Any text will do: parts of names, and folders that are looked for where they are needed.
TEXTS = {"only", "runs"}
# Checked when the recorder is opened, which happens after where these tests end.
BY_THE_RECORDER = {"checkpoint_seconds"}


class Reached(BaseException):
    """The binary accepted its flags."""


def kind(flag: flags.Flag) -> str | None:
    name = flag.flag_type()
    if "enum" in name:
        return "enum"
    return {"int": "int", "float": "float", "bool": "bool"}.get(
        name, "list" if name.startswith("comma separated") else None
    )


def defined(binary: ModuleType) -> list[flags.Flag]:
    values = flags.FlagValues()
    binary.define_flags(values)
    return [values[name] for name in sorted(values)]


CASES = [
    pytest.param(binary, flag.name, kind(flag), id=f"{binary.__name__}-{flag.name}")
    for binary in BINARIES
    for flag in defined(binary)
    if kind(flag) and flag.name not in TEXTS | BY_THE_RECORDER
]


def after(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
    """Has a binary end where this function of a module returned."""
    function = getattr(module, name)

    def then_end(*args: Any, **named: Any) -> None:
        function(*args, **named)
        raise Reached

    monkeypatch.setattr(module, name, then_end)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys) -> Any:
    """Runs a binary up to the point where it begins its work: (exit code, what it said)."""
    monkeypatch.setenv("NPROC", "1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    small_files.hide_users_folders(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)

    def reached(*args: object, **named: object) -> None:
        raise Reached

    monkeypatch.setattr(folders, "claim_folder", reached)
    monkeypatch.setattr(recording, "open_recorder", reached)
    # The work of an example begins when it has its budget, that of `randomness` with the data.
    after(monkeypatch, comparison, "budget")
    monkeypatch.setattr(randomness, "measure", reached)

    def begin(binary: ModuleType, *arguments: str) -> tuple[int | None, str]:
        monkeypatch.setattr(sys, "argv", ["binary", *arguments])
        try:
            code: int | None = launch.run(binary.main, binary.define_flags)
        except Reached:
            code = None
        return code, capsys.readouterr().err

    return begin


@pytest.mark.parametrize(("binary", "name", "of_kind"), CASES)
def test_every_flag_refuses_what_it_must(run, tmp_path, binary, name, of_kind) -> None:
    for value in REFUSED[of_kind]:
        code, said = run(binary, *BINARIES[binary], f"--{name}={value}")
        if value in ACCEPTED.get(name, ()) and code is None:
            continue
        assert (code, said.count("\n")) == (2, 1), f"--{name}={value}: {code} {said}"
        assert name in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("binary", BINARIES, ids=lambda binary: binary.__name__)
def test_the_flags_of_these_cases_are_accepted_otherwise(run, binary) -> None:
    assert run(binary, *BINARIES[binary])[0] is None


@pytest.mark.parametrize("binary", [*BINARIES, *PARSED_ONLY], ids=lambda binary: binary.__name__)
def test_what_no_flag_of_the_kind_can_be_is_refused(run, tmp_path, binary) -> None:
    wrong = {"int": "1.5", "float": "x", "bool": "perhaps", "enum": "misspelt"}
    for flag in defined(binary):
        if kind(flag) in wrong:
            code, said = run(binary, f"--{flag.name}={wrong[kind(flag)]}")
            assert (code, said.count("\n")) == (2, 1), said
            assert flag.name in said
    assert not list(tmp_path.iterdir())


def test_a_step_that_vanishes_in_a_later_epoch_is_refused_at_once(run) -> None:
    flags_ = (*TRAINED, "--num_epochs=20", "--lr_decay=50")
    code, said = run(train_shared, *flags_)
    assert code == 2
    assert "the step by --lr in epoch 19 must be a finite number above 0 in float32, got" in said
    code, said = run(train_shared, *flags_, "--lr_decay=1e300")
    assert "--lr_decay must leave a step above 0 in every epoch, got 1e+300, with which" in said


@pytest.mark.parametrize(
    ("argument", "ending"),
    [
        ("--dataset=minst", "; did you mean mnist?"),
        ("--method=SVGR", "; did you mean svrg?"),
        ("--delays=roundrobin", "; did you mean round_robin?"),
        ("--num_epoch=3", "Did you mean: num_epochs ?"),  # absl's own
        ("--dataset=imagenet", "|cifar10_features>"),
    ],
)
def test_the_nearest_name_is_suggested(argument: str, ending: str) -> None:
    values = flags.FlagValues()
    train_shared.define_flags(values)
    with pytest.raises(flags.Error) as caught:
        values(["binary", argument])
    assert flag_errors.told(caught.value).endswith(ending)


def test_every_binary_is_here() -> None:
    """A new one must be among those above."""
    root = Path(__file__).parent.parent
    starting = {
        ".".join(path.relative_to(root).with_suffix("").parts)
        for folder in ("experiments", "benchmarks")
        for path in (root / folder).rglob("*.py")
        if "launch.start(main" in path.read_text(encoding="utf-8")
    }
    assert starting - {"benchmarks.soak"} <= {
        binary.__name__ for binary in (*BINARIES, *PARSED_ONLY)
    }
