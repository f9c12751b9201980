"""What makes each figure: commands, how long they take, and what their rows are called."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.cluster import launcher
from experiments.methods import METHODS, Step

FIGURES = ("figure1", "figure2", "figure3", "figure4")
# The figure whose search found the steps of each figure.
SEARCH_OF = {"figure1": "figure1", "figure2": "figure1", "figure3": "figure3", "figure4": "figure3"}
NUM_WORKERS = 3  # of Figure 3
PREDICTED = (1, 2, 4, 8, 16, 32)  # workers of Figures 2 and 4 that are simulated
FLAGFILES = Path("experiments/flagfiles")
# Settings of Figure 2: the step of Figure 1, and a quarter of it, which bears longer delays.
TUNED, QUARTER = "tuned_step", "quarter_step"
# Of Figure 4: all links with --rate of experiments.cluster, the server's with --server_rate, and no
# limits, for the prediction.
EQUAL, FAST, UNLIMITED = "equal_links", "fast_server", "unlimited"


class Sizes(NamedTuple):
    """How much is run: see the flags of `experiments.reproduce`."""

    num_seeds: int
    speedup_seeds: int
    threads: list[int]
    workers: list[int]
    rate: str
    server_rate: str


class Labels(NamedTuple):
    """The first columns of runs.csv: which run a row is of."""

    method: str
    workers: int
    setting: str
    seed: int


class Command(NamedTuple):
    """A command, and where what it leaves behind is.

    Attributes:
      name: its folder below --out_dir.
      words: of the command, without --out_dir; python and mpiexec are those of this environment.
      seconds: that it takes on two cores.
      labels: of the rows of its metrics.csv; of a prediction those of the run that it is made from;
        None of a search.
      goes_on: whether it goes on with what is in its folder, rather than refuse it.
    """

    name: str
    words: list[str]
    seconds: float
    labels: Labels | None = None
    goes_on: bool = True

    @property
    def unit(self) -> str:
        """Its name among what is done; a prediction of more workers is another one."""
        return self.name if self.goes_on else f"{self.name} {shlex.join(self.words)}"


def search(figure: str) -> Command:
    """The search for the steps of a figure."""
    return Command(
        f"{figure}/tune",
        _python("tune", f"--flagfile={FLAGFILES / figure}_tune.flags"),
        {"figure1": 600.0, "figure3": 450.0}[figure],
    )


def runs(figure: str, sizes: Sizes, steps: Mapping[str, Step], mpi: str | None) -> list[Command]:
    """The runs of a figure, those that are compared one after the other.

    Args:
      figure: one of FIGURES.
      sizes: how much is run.
      steps: method -> its best step.
      mpi: OPEN_MPI or MPICH of the launcher; None for Figures 1 and 2, which need none.

    Returns:
      Commands.
    """
    if figure == "figure1":
        return [
            _shared(figure, Labels(method, 2, "", seed), steps, 10.0)
            for seed in range(sizes.num_seeds)
            for method in METHODS
        ]
    if figure == "figure2":
        return [
            _shared(figure, Labels("svrg", k, setting, seed), steps, 9.0)
            for seed in range(sizes.num_seeds)
            for setting in (TUNED, QUARTER)
            for k in sizes.threads
        ]
    if figure == "figure3":
        assert mpi is not None
        return [
            _distributed(figure, Labels(method, NUM_WORKERS, "", seed), steps, 16.0, _mpiexec(mpi))
            for seed in range(sizes.num_seeds)
            for method in METHODS
        ]
    return [
        _on_cluster(Labels("svrg", k, setting, seed), sizes, steps)
        for seed in range(sizes.speedup_seeds)
        for setting, workers in ((UNLIMITED, [1]), (EQUAL, sizes.workers), (FAST, sizes.workers))
        for k in workers
    ]


def predictions(figure: str, sizes: Sizes, done: Sequence[Command], folder: Path) -> list[Command]:
    """What a virtual clock, calibrated on one worker, says of more: Figures 2 and 4.

    Args:
      figure: one of FIGURES.
      sizes: how much is run.
      done: the figure's runs.
      folder: that holds theirs.

    Returns:
      Commands, none for the other figures.
    """

    def predict(setting: str, of: str, workers: Sequence[int], *more: str) -> Command:
        serial = Labels("svrg", 1, of, 0)
        run = next(command.name for command in done if command.labels == serial)
        counts = ",".join(map(str, workers))
        words = _python(
            "predict_speedup",
            f"--runs={folder / run}",
            f"--beyond={counts}",
            f"--replay={counts}",
            *more,
        )
        labels = serial._replace(setting=setting)
        return Command(f"{figure}/predicted/{setting}", words, 35.0, labels, goes_on=False)

    if figure == "figure2":
        return [predict(setting, setting, PREDICTED) for setting in (TUNED, QUARTER)]
    if figure == "figure4":
        # The link of the server comes on top of a run without one. Those of the workers are in the
        # time that one worker takes with a fast server.
        workers = sorted({*sizes.workers, *PREDICTED})
        bandwidth = f"--bandwidth={megabits(sizes.rate):g}"
        return [
            predict(EQUAL, UNLIMITED, workers, "--cores=0", bandwidth),
            predict(FAST, FAST, workers, "--cores=0"),
        ]
    return []


def megabits(rate: str) -> float:
    """A rate of `experiments.cluster` in Mbit/s.

    >>> megabits("64mbit"), megabits("1gbit"), megabits("500kbit")
    (64.0, 1000.0, 0.5)
    """
    return float(rate[:-4]) * {"k": 1e-3, "m": 1.0, "g": 1e3}[rate[-4]]


def _shared(figure: str, labels: Labels, steps: Mapping[str, Step], seconds: float) -> Command:
    name = labels.method if figure == "figure1" else f"{labels.setting}/{labels.workers}"
    if labels.setting == QUARTER:
        steps = {"svrg": steps["svrg"]._replace(lr=steps["svrg"].lr / 4)}
    flagfile = f"{figure}_{labels.method}" if figure == "figure1" else figure
    words = _python(
        "train_shared",
        f"--flagfile={FLAGFILES / flagfile}.flags",
        *([] if figure == "figure1" else [f"--num_threads={labels.workers}"]),
        *_step_flags(labels.method, steps),
        f"--seed={labels.seed}",
    )
    return Command(f"{figure}/{name}-{labels.seed}", words, seconds, labels)


def _distributed(
    figure: str,
    labels: Labels,
    steps: Mapping[str, Step],
    seconds: float,
    before: Sequence[str],
) -> Command:
    flagfile = f"{figure}_{labels.method}" if figure == "figure3" else figure
    name = labels.method if figure == "figure3" else f"{labels.setting}/{labels.workers}"
    words = _python(
        "train_distributed",
        f"--flagfile={FLAGFILES / flagfile}.flags",
        *_step_flags(labels.method, steps),
        f"--seed={labels.seed}",
    )
    return Command(f"{figure}/{name}-{labels.seed}", [*before, *words], seconds, labels)


def _on_cluster(labels: Labels, sizes: Sizes, steps: Mapping[str, Step]) -> Command:
    rate, server_rate = {
        EQUAL: (sizes.rate, sizes.rate),
        FAST: (sizes.rate, sizes.server_rate),
        UNLIMITED: (UNLIMITED, UNLIMITED),
    }[labels.setting]
    before = _python(
        "cluster",
        f"--num_workers={labels.workers}",
        f"--rate={rate}",
        f"--server_rate={server_rate}",
        "--",
    )
    # 6,000 updates, and twice the time of a message of 79 KB.
    update = 2 * 0.632 / megabits(sizes.rate) / min(labels.workers, 2)
    if labels.setting == FAST:
        update *= min(labels.workers, 2) / labels.workers
    seconds = 10.0 + 6_000 * (0.0005 if labels.setting == UNLIMITED else update)
    return _distributed("figure4", labels, steps, seconds, before)


def _step_flags(method: str, steps: Mapping[str, Step]) -> list[str]:
    flags = [f"--lr={steps[method].lr:g}", f"--lr_decay={steps[method].decay:g}"]
    if method == "sgd_svrg":
        of_sgd = steps["sgd"]
        flags += [f"--pretrain_lr={of_sgd.lr:g}", f"--pretrain_lr_decay={of_sgd.decay:g}"]
    return flags


def _mpiexec(mpi: str) -> list[str]:
    """A server and the workers of Figure 3 on this machine."""
    own = ["--with-ft", "ulfm", "--oversubscribe", "--bind-to", "none"]
    ranks = ["-n", str(NUM_WORKERS + 1)]
    return ["mpiexec", *(own if mpi == launcher.OPEN_MPI else []), *ranks]


def _python(binary: str, *words: str) -> list[str]:
    return ["python", "-m", f"experiments.{binary}", *words]
