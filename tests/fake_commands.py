"""Commands that leave at once what the paper's real ones leave later."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from asvrg.errors import InputError
from experiments import folders, launch, recording, tables, tune
from experiments.methods import Step
from experiments.paper import evidence, search
from experiments.paper.plan import Labels
from experiments.speedup import outputs
from experiments.speedup.predictions import BEYOND, MEASURED

ROOT = Path(__file__).parent.parent
EPOCHS = 2
# What the searches find: other steps for each figure, and not those of the grid to begin with.
FOUND = {
    "figure1": {"sgd": Step(0.3, 0.2), "svrg": Step(0.7, 0.0), "sgd_svrg": Step(2.0, 0.0)},
    "figure3": {"sgd": Step(0.1, 0.5), "svrg": Step(0.03, 0.0), "sgd_svrg": Step(0.05, 0.0)},
}


def loss_of(labels: Labels) -> float:
    """In the end; no other run's."""
    return 0.5 + 0.4 * zlib.crc32(repr(tuple(labels)).encode()) / 2**32


class Commands:
    """Stands for `processes.run`: leaves the csv files of a command, and remembers it.

    Attributes:
      done: the words of each.
      folders: that each wrote to.
      logs: of each.
      before: called with a command's folder before it leaves anything.
      after: the same when it has left everything.
    """

    def __init__(self) -> None:
        self.done: list[list[str]] = []
        self.folders: list[str] = []
        self.logs: list[Path] = []
        self.before: Callable[[Path], None] = lambda folder: None
        self.after: Callable[[Path], None] = lambda folder: None

    def __call__(
        self,
        words: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        stop: launch.Stop,
        tick: Callable[[], None],
    ) -> None:
        assert log.parent.is_dir()
        tick()
        self.done.append(list(words))
        self.logs.append(log)
        binary = [word for word in words if re.fullmatch(r"experiments\.\w+", word)][-1]
        given = dict(re.findall(r"^--(\w+)=(.*)$", "\n".join(words), re.MULTILINE))
        folder = Path(given.get("out_dir", log.parent))
        self.folders.append(str(folder))
        self.before(folder)
        match binary.removeprefix("experiments."):
            case "tune":
                leave_search(folder, FOUND[Path(given["flagfile"]).name.partition("_")[0]])
            case "train_shared" | "train_distributed":
                leave_run(folder, labels_of(words, given))
            case "predict_speedup":
                leave_prediction(folder, given)
            case "extract_features":
                assert "out_dir" not in given
        tick()
        self.after(folder)
        stop.heed()


def labels_of(words: Sequence[str], given: Mapping[str, str]) -> Labels:
    """Which run a command is, by its words and its flagfile."""
    text = (ROOT / given["flagfile"]).read_text()
    said = dict(re.findall(r"^--(\w+)=(.*)$", text, re.MULTILINE)) | given
    if "num_threads" in said:
        setting = ""
        if Path(given["flagfile"]).stem == "figure2":
            times = FOUND["figure1"]["svrg"].lr / float(given["lr"])
            setting = {1.0: "tuned_step", 4.0: "quarter_step"}[times]
        return Labels(said["method"], int(said["num_threads"]), setting, int(said["seed"]))
    if "num_workers" not in said:
        ranks = int(words[words.index("-n") + 1])
        return Labels(said["method"], ranks - 1, "", int(said["seed"]))
    setting = {
        ("100mbit", "100mbit"): "equal_links",
        ("100mbit", "1gbit"): "fast_server",
        ("unlimited", "unlimited"): "unlimited",
    }[said["rate"], said["server_rate"]]
    return Labels(said["method"], int(said["num_workers"]), setting, int(said["seed"]))


def leave_search(folder: Path, found: Mapping[str, Step]) -> None:
    steps, best = [], []
    for method, step in found.items():
        steps.append(search.Row(method, *step, 100, EPOCHS, 0.4, 0.1, 0.5, 0.2, 0.01))
        for among, chosen in ((tune.ALL, step), (tune.GRID, Step(0.05, 0.0))):
            best.append(search.Best(method, among, *chosen, 0.4, 0.4, 0.4, 0.2, 0.01, 5))
    tables.write_csv(folder / evidence.STEPS, steps)
    tables.write_csv(folder / evidence.BEST, best)


def leave_run(folder: Path, labels: Labels) -> None:
    rows = [
        recording.Row(
            epoch,
            epoch / labels.workers,
            100 * epoch,
            200 * epoch,
            2.0 * (loss_of(labels) / 2.0) ** (epoch / EPOCHS),
            *(0.5, 2.1, 0.5, 0.1, 1.0, 2),
        )
        for epoch in range(EPOCHS + 1)
    ]
    tables.write_csv(folder / recording.METRICS, rows)
    tables.write_lines(folder / recording.DELAYS, [("worker", "delay"), (0, 0)])


def leave_prediction(folder: Path, given: Mapping[str, str]) -> None:
    """As `predict_speedup` does, which refuses a folder with results: it never goes on."""
    metrics = tables.read(Path(given["runs"]) / recording.METRICS)
    assert float(metrics[-1]["seconds"]) == EPOCHS  # of one worker
    try:
        folders.claim_folder(str(folder), "predict_speedup", holds=outputs.SPEEDS)
    except InputError as error:
        raise ChildProcessError(f"the command ended with code 2: {error}") from error
    header = ("kind", "workers", "cores", "epoch", "seconds", "train_loss", "test_error")
    lines = [
        (kind, k, None, epoch, epoch / k, 2.0 * 0.3**epoch, 0.5)
        for kind, workers in ((MEASURED, ["1"]), (BEYOND, given["replay"].split(",")))
        for k in map(int, workers)
        for epoch in range(EPOCHS + 1)
    ]
    tables.write_lines(folder / outputs.CURVES, [header, *lines])
    tables.write_lines(folder / outputs.SPEEDS, [("kind",), (BEYOND,)])
