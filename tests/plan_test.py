"""The commands of every figure, what their flagfiles say, and that both agree with what was run."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
from absl import flags

from experiments import predict_speedup, reproduce, tables, train_distributed, train_shared, tune
from experiments.cluster import __main__ as cluster
from experiments.cluster import launcher
from experiments.methods import METHODS, Phase, Step, phases
from experiments.paper import evidence, plan
from experiments.paper.plan import Command, Labels, Sizes

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"
BINARIES: dict[str, ModuleType] = {
    "cluster": cluster,
    "predict_speedup": predict_speedup,
    "train_distributed": train_distributed,
    "train_shared": train_shared,
    "tune": tune,
}
STEPS = {"sgd": Step(0.3, 0.2), "svrg": Step(0.7, 0.0), "sgd_svrg": Step(1e-5, 0.0)}
FLAGFILES = sorted(path.relative_to(ROOT) for path in (ROOT / plan.FLAGFILES).glob("*"))


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    """As commands name their flagfiles from there."""
    monkeypatch.chdir(ROOT)


def defaults() -> Sizes:
    """What is run if nobody asks for anything else."""
    values = flags.FlagValues()
    reproduce.define_flags(values)
    values.mark_as_parsed()
    return Sizes(
        values.num_seeds,
        values.speedup_seeds,
        [int(k) for k in values.threads],
        [int(k) for k in values.workers],
        values.rate,
        values.server_rate,
    )


SIZES = defaults()


def runs(figure: str) -> list[Command]:
    return plan.runs(figure, SIZES, STEPS, launcher.OPEN_MPI)


def every_command() -> list[Command]:
    """All that has a flagfile."""
    searches = [plan.search(figure) for figure in sorted(set(plan.SEARCH_OF.values()))]
    return [*searches, *(command for figure in plan.FIGURES for command in runs(figure))]


def parsed(words: Sequence[str], index: int = -1) -> tuple[str, flags.FlagValues]:
    """A binary of a command, the last one, and its flags as it would parse them."""
    at = [i for i, word in enumerate(words) if word.startswith("experiments.")][index]
    assert list(words[at - 2 : at]) == ["python", "-m"]
    name = words[at].removeprefix("experiments.")
    given = list(itertools.takewhile(lambda word: word != "--", words[at + 1 :]))
    values = flags.FlagValues()
    BINARIES[name].define_flags(values)
    assert values([name, *given]) == [name]
    return name, values


def flagfile_of(words: Sequence[str]) -> Path:
    (name,) = [word.removeprefix("--flagfile=") for word in words if "--flagfile=" in word]
    return Path(name)


def phases_of(name: str, values: flags.FlagValues) -> list[Phase]:
    """As the binary has them; it refuses flags that do not belong to the method."""
    return phases(values, BINARIES[name].TUNED[values.dataset])


def test_the_default_sizes_are_those_of_the_paper() -> None:
    assert (SIZES.num_seeds, SIZES.threads) == (5, [1, 2, 4, 8, 16, 32])
    assert SIZES.workers == [*range(1, 11)]
    assert SIZES.speedup_seeds >= 3


def test_every_method_seed_and_number_of_workers_is_run_once() -> None:
    seeds, few = range(5), range(SIZES.speedup_seeds)
    expected = {
        "figure1": {Labels(method, 2, "", seed) for method in METHODS for seed in seeds},
        "figure2": {
            Labels("svrg", k, setting, seed)
            for setting in ("tuned_step", "quarter_step")
            for k in SIZES.threads
            for seed in seeds
        },
        "figure3": {Labels(method, 3, "", seed) for method in METHODS for seed in seeds},
        "figure4": {
            Labels("svrg", k, setting, seed)
            for setting in ("equal_links", "fast_server")
            for k in SIZES.workers
            for seed in few
        }
        | {Labels("svrg", 1, "unlimited", seed) for seed in few},
    }
    assert set(expected) == set(plan.FIGURES)
    names = Counter[str]()
    for figure, labels in expected.items():
        commands = runs(figure)
        assert Counter(command.labels for command in commands) == Counter(labels)
        names.update(command.name for command in commands)
        names.update(command.name for command in plan.predictions(figure, SIZES, commands, ROOT))
        assert {command.name.partition("/")[0] for command in commands} == {figure}
        assert all(command.seconds > 0 for command in commands)
    assert set(names.values()) == {1}  # as each is a folder


@pytest.mark.parametrize("figure", plan.FIGURES)
def test_the_commands_run_what_their_labels_say(figure: str) -> None:
    for command in runs(figure):
        assert command.labels is not None
        name, values = parsed(command.words)
        assert name == ("train_shared" if figure in ("figure1", "figure2") else "train_distributed")
        assert (values.method, values.seed) == (command.labels.method, command.labels.seed)
        if name == "train_shared":
            assert values.num_threads == command.labels.workers
        elif figure == "figure3":
            assert command.words[0] == "mpiexec"
            assert int(command.words[command.words.index("-n") + 1]) == command.labels.workers + 1
        else:
            _, around = parsed(command.words, 0)
            assert command.words[command.words.index("--") + 1] == "python"
            assert around.num_workers == command.labels.workers
            assert (around.rate, around.server_rate) == {
                "equal_links": (SIZES.rate, SIZES.rate),
                "fast_server": (SIZES.rate, SIZES.server_rate),
                "unlimited": ("unlimited", "unlimited"),
            }[command.labels.setting]
            for which in ("rate", "server_rate"):
                cluster._rate(which, around[which].value)  # refuses what it cannot set
        # Runs that a prediction reads leave their traces.
        assert values.record == (figure in ("figure2", "figure4"))
        pretraining, main = [None, *phases_of(name, values)][-2:]
        step = STEPS[command.labels.method]
        if command.labels.setting == "quarter_step":
            step = Step(step.lr / 4, step.decay)
        assert main.step == step
        if command.labels.method == "sgd_svrg":
            assert pretraining.step == STEPS["sgd"]


def test_open_mpi_goes_on_with_fewer_ranks_and_mpich_does_not_know_its_options() -> None:
    """Of the two, MPICH refuses options that it does not know."""
    own, other = (
        plan.runs("figure3", SIZES, STEPS, mpi)[0].words
        for mpi in (launcher.OPEN_MPI, launcher.MPICH)
    )
    assert own[: own.index("-n")] == [
        "mpiexec",
        *("--with-ft", "ulfm", "--oversubscribe", "--bind-to", "none"),
    ]
    assert other[:2] == ["mpiexec", "-n"]
    assert own[own.index("-n") :] == other[1:]


def test_predictions_are_calibrated_by_one_worker() -> None:
    folder = Path("out")
    found = {
        command.name: command
        for figure in plan.FIGURES
        for command in plan.predictions(figure, SIZES, runs(figure), folder)
    }
    expected = {
        "figure2/predicted/tuned_step": ("figure2/tuned_step/1-0", None, None),
        "figure2/predicted/quarter_step": ("figure2/quarter_step/1-0", None, None),
        # Without a link of its own, which --bandwidth adds.
        "figure4/predicted/equal_links": (
            "figure4/unlimited/1-0",
            0,
            plan.megabits(SIZES.rate),
        ),
        "figure4/predicted/fast_server": ("figure4/fast_server/1-0", 0, None),
    }
    assert set(found) == set(expected)
    every = {command.name: command.labels for figure in plan.FIGURES for command in runs(figure)}
    for name, (of, cores, bandwidth) in expected.items():
        assert found[name].labels == Labels("svrg", 1, Path(name).name, 0)
        assert every[of].workers == 1
        binary, values = parsed(found[name].words)
        assert binary == "predict_speedup"
        assert values.runs == [str(folder / of)]
        assert (values.cores, values.bandwidth) == (cores, bandwidth)
        assert values.beyond == values.replay
        assert {1, 2, 4, 8, 16, 32} <= {int(k) for k in values.replay}
        if name.startswith("figure4"):
            assert set(SIZES.workers) <= {int(k) for k in values.replay}


@pytest.mark.parametrize(
    ("rate", "expected"), [("100mbit", 100.0), ("2gbit", 2e3), ("1kbit", 1e-3)]
)
def test_rates_in_megabits(rate: str, expected: float) -> None:
    assert plan.megabits(rate) == pytest.approx(expected)


def test_every_flagfile_belongs_to_a_command() -> None:
    assert {flagfile_of(command.words) for command in every_command()} == set(FLAGFILES)


SHARED = {
    "dataset": "mnist",
    "num_train": 10_000,
    "num_test": 2_000,
    "hidden": ["100"],
    "l2": 1e-3,
    "batch_size": 10,
    "inner_steps": 1_000,
    "block_size": 1_000,
    "activation": "relu",
}
DISTRIBUTED = {
    "dataset": "cifar10_features",
    "num_train": 20_000,
    "num_test": 4_000,
    "hidden": ["50"],
    "l2": 1e-4,
    "batch_size": 10,
    "inner_steps": 2_000,
    "activation": "relu",
}


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_flagfiles_have_the_settings_of_the_paper(path: Path) -> None:
    figure, _, kind = path.stem.partition("_")
    shared = figure in ("figure1", "figure2")
    binary = "tune" if kind == "tune" else "train_shared" if shared else "train_distributed"
    _, values = parsed(["python", "-m", f"experiments.{binary}", f"--flagfile={path}"])
    expected = SHARED if shared else DISTRIBUTED
    assert {name: values[name].value for name in expected} == expected
    if kind == "tune":
        if not shared:
            assert values.block_size == 0  # an iteration of Algorithm 2 updates all of x
        assert values.pretrain_epochs == (10 if shared else 1)
        assert set(values.methods) == set(METHODS)
        # The paper's grid, and seeds that no run of a figure has.
        assert not any(values[name].present for name in ("lr", "lr_decay"))
        assert values.seed >= SIZES.num_seeds
        assert values.num_seeds >= 2
    else:
        assert values.method == (kind or "svrg")
        first, *_ = phases_of(binary, values)
        if kind == "sgd_svrg":
            assert (first.estimator, first.num_epochs) == ("sgd", 10 if shared else 1)
    if figure in ("figure1", "figure3"):
        searched = parsed(plan.search(figure).words)[1]
        assert values.num_epochs == searched.num_epochs


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_the_header_of_a_flagfile_has_a_command_with_it(path: Path) -> None:
    """One that somebody can type: its flags are known, and its K is a number."""
    header = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    text = "\n".join(line.removeprefix("#").strip() for line in header)
    found = re.findall(r"^((?:mpiexec|python) (?:[^\\\n]|\\\n)*)", text, re.MULTILINE)
    (command,) = found
    assert "\nExpected time: " in text
    assert "\nExpected result: " in text
    words = shlex.split(command.replace("\\\n", " ").replace("=K", "=3"))
    assert flagfile_of(words) == path
    name, values = parsed(words)
    (same,) = {
        tuple(word for word in made.words if word.startswith("experiments."))
        for made in every_command()
        if flagfile_of(made.words) == path
    }
    assert tuple(word for word in words if word.startswith("experiments.")) == same
    if "--" in words:
        assert parsed(words, 0)[1].num_workers == 3
    if name != "tune":
        assert values.seed == 0


def best_steps(figure: str) -> dict[str, Step]:
    """Those that a committed search has found."""
    return {
        row["method"]: Step(float(row["lr"]), float(row["lr_decay"]))
        for row in tables.read(RESULTS / figure / evidence.BEST)
        if row["among"] == "all"
    }


@pytest.mark.parametrize(
    "path", [path for path in FLAGFILES if "tune" not in path.stem], ids=lambda path: path.stem
)
def test_flagfiles_have_the_steps_that_the_search_found(path: Path) -> None:
    figure, _, kind = path.stem.partition("_")
    best = best_steps(plan.SEARCH_OF[figure])
    assert set(best) == set(METHODS)
    binary = "train_shared" if figure in ("figure1", "figure2") else "train_distributed"
    _, values = parsed(["python", "-m", f"experiments.{binary}", f"--flagfile={path}"])
    *before, main = phases_of(binary, values)
    assert main.step == best[kind or "svrg"]
    assert [phase.step for phase in before] == [best["sgd"]] * (kind == "sgd_svrg")


@pytest.mark.parametrize("figure", sorted(set(plan.SEARCH_OF.values())))
def test_the_header_of_a_search_tells_what_it_found(figure: str) -> None:
    text = flagfile_of(plan.search(figure).words).read_text()
    (said,) = re.findall(r"^# Expected result: best steps (.*)", text, re.MULTILINE)
    for method, step in best_steps(figure).items():
        decay = f" / (1 + s)^{step.decay:g}" if step.decay else ""
        assert re.search(rf"(^|, ){re.escape(f'{step.lr:g}{decay}')} \([^)]*\b{method}\b", said)


@pytest.mark.parametrize("figure", plan.FIGURES)
def test_the_committed_commands_are_those_of_the_plan(figure: str) -> None:
    """With the steps of the committed search, and as many seeds and workers as were run."""
    best = best_steps(plan.SEARCH_OF[figure])
    listed = tables.read(RESULTS / figure / reproduce.COMMANDS)
    committed = {row["name"]: row["command"] for row in listed}
    given = json.loads((RESULTS / figure / "config.json").read_text(encoding="utf-8"))["flags"]
    sizes = plan.Sizes(
        given["num_seeds"],
        given["speedup_seeds"],
        [int(k) for k in given["threads"]],
        [int(k) for k in given["workers"]],
        given["rate"],
        given["server_rate"],
    )
    for command in plan.runs(figure, sizes, best, launcher.OPEN_MPI):
        assert committed[command.name] == shlex.join(command.words)
