"""Figures 1 to 4 from their csv files: the same every time, and what is on them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import draw_figures, recording, tables
from experiments.paper import drawing, evidence
from experiments.paper.plan import FIGURES, Labels
from tests.binaries import run

ROOT = Path(__file__).parent.parent
EPOCHS = 3
COLUMNS = recording.Row._fields
CONFIG = {"machine": {"cores": 7}, "flags": {"rate": "40mbit", "server_rate": "2gbit"}}
# No numbers that stand at ticks; 29 are simulated alone, and 13 are more than there are cores.
MEASURED, SIMULATED = (1, 7, 13), (1, 7, 13, 29)


def rows_of(label: Labels) -> list[tuple[Any, ...]]:
    """Lines of runs.csv: what comes later is better, and other runs are others."""
    rng = np.random.default_rng([len(label.method), label.workers, len(label.links), label.seed])
    speed = rng.uniform(0.5, 1.5)
    return [
        (
            *label,
            *recording.Row(
                epoch,
                epoch / label.workers * rng.uniform(0.9, 1.1),
                100 * epoch,
                50 * epoch,
                2.3 * float(np.exp(-speed * epoch)),
                0.9 / (1 + speed * epoch),
                2.4 * float(np.exp(-speed * epoch)),
                0.91 / (1 + speed * epoch),
                1.0 / (1 + epoch) ** 2,
                label.workers * (epoch > 0) * 0.5,
                label.workers * (epoch > 0),
            ),
        )
        for epoch in range(EPOCHS + 1)
    ]


def write_runs(folder: Path, labels: list[Labels]) -> None:
    folder.mkdir(parents=True)
    lines = [row for label in labels for row in rows_of(label)]
    tables.write_lines(folder / evidence.RUNS, [(*Labels._fields, *COLUMNS), *lines])
    (folder / recording.CONFIG).write_text(json.dumps(CONFIG))


def write_predicted(folder: Path, links: tuple[str, ...]) -> None:
    header = ("links", "kind", "workers", "cores", "epoch", "seconds", "train_loss", "test_error")
    lines = [
        (of, "simulated beyond", k, None, epoch, epoch / k, 2.3 * 0.6**epoch, 0.9 * 0.7**epoch)
        for of in links
        for k in SIMULATED
        for epoch in range(EPOCHS + 1)
    ]
    tables.write_lines(folder / evidence.PREDICTED, [header, *lines])


def write_results(folder: Path, figures: tuple[str, ...]) -> Path:
    """A folder of results, of two seeds."""
    for figure in figures:
        methods = ("sgd", "svrg", "sgd_svrg") if figure in ("figure1", "figure3") else ("svrg",)
        workers = (2,) if len(methods) > 1 else MEASURED
        links = ("equal", "fast_server") if figure == "figure4" else ("",)
        every = [
            Labels(method, k, of, seed)
            for seed in (0, 1)
            for of in links
            for k in workers
            for method in methods
        ]
        if figure == "figure4":
            every.append(Labels("svrg", 1, "unlimited", 0))
        write_runs(folder / figure, every)
        if len(methods) == 1:
            write_predicted(folder / figure, links)
    return folder


@pytest.fixture
def undrawn(monkeypatch) -> list[dict[str, Any]]:
    """What Figures 2 and 4 would be drawn from; nothing is, which takes its time."""
    asked: list[dict[str, Any]] = []

    def draw_speedup(path: Path, runs: Any, predicted: Any, lines: Any, **named: Any) -> None:
        asked.append({"name": path.name, "runs": runs, "predicted": predicted, "lines": lines})
        asked[-1] |= named

    monkeypatch.setattr(drawing, "draw_speedup", draw_speedup)
    monkeypatch.setattr(drawing, "draw_methods", lambda *args: None)
    return asked


def texts(path: Path) -> list[str]:
    """The texts of an svg."""
    return re.findall(r"<text[^>]*>([^<]+)</text>", path.read_text(encoding="utf-8"))


def test_a_folder_without_a_figure_is_refused(tmp_path, capsys):
    (tmp_path / "figure5").mkdir()
    (tmp_path / "figure5" / evidence.RUNS).touch()
    assert run(draw_figures, f"--results_dir={tmp_path}") == 2
    said = capsys.readouterr().err
    assert f"--results_dir must hold figure1/runs.csv or another figure's, got {tmp_path}" in said
    assert run(draw_figures, f"--results_dir={tmp_path / 'none'}") == 2


def test_figures_are_the_same_bytes_every_time(tmp_path, capsys, monkeypatch):
    """And they say what is on them; of the three axes of Figure 1, one will do."""
    monkeypatch.setattr(drawing, "AXES", {"epoch": "epochs s"})
    folders = [write_results(tmp_path / name, ("figure1", "figure2")) for name in ("one", "two")]
    for folder in folders:
        before = {path for path in folder.rglob("*") if path.is_file()}
        assert run(draw_figures, f"--results_dir={folder}") == 0
        written = {path for path in folder.rglob("*") if path.is_file()} - before
        assert {Path(line) for line in capsys.readouterr().out.splitlines()} == written
    names = {path.relative_to(folder).as_posix() for path in written}
    assert names == {
        "figure1/claims.csv",
        *(f"figure1/figure1_{axis}.{kind}" for axis in drawing.AXES for kind in ("svg", "png")),
        "figure2/speedup.csv",
        "figure2/figure2.svg",
        "figure2/figure2.png",
    }
    for name in names:
        one, two = ((each / name).read_bytes() for each in folders)
        assert one == two, name

    said = texts(folder / "figure1" / "figure1_epoch.svg")
    for method in drawing.NAMES.values():
        assert said.count(method) == len(drawing.PANELS)
    assert {"training loss f(x)", "epochs s", "mean and range of 2 seeds"} <= set(said)

    said = texts(folder / "figure2" / "figure2.svg")
    # At the ends of the curves of loss and of error: those that were measured on enough cores, and
    # the simulated ones.
    for k in (7, 13, 29):
        assert said.count(f"{k}") == 2
    assert "K = 1, 7, 13, measured" in said
    assert "solid: measured, K at most the 7 cores; dotted: simulated" in said


def test_curves_that_end_at_0_leave_room_for_the_others(tmp_path, monkeypatch):
    """No error is left on the training samples, which a logarithmic axis cannot show."""
    monkeypatch.setattr(drawing, "AXES", {"epoch": "epochs s"})
    write_results(tmp_path, ("figure1",))
    runs = evidence.read_runs(tmp_path / "figure1" / evidence.RUNS)
    for each in runs:
        if each.labels.method != "sgd":
            each.columns["train_error"][-1] = 0.0
    sheets: list[Any] = []
    monkeypatch.setattr(drawing, "_save", lambda sheet, path: sheets.append(sheet))
    drawing.draw_methods(tmp_path, "figure1", runs, 100, "title")
    (sheet,) = sheets
    sheet.draw_without_rendering()  # constrained layout: whatever lies outside takes room
    panel = sheet.axes[list(drawing.PANELS).index("train_error")]
    assert min(each.get_window_extent().height for each in sheet.axes) > 0.2 * sheet.bbox.height
    heights = [text.get_position()[1] for text in panel.texts]
    assert len(heights) == 3
    assert all(-0.1 <= height <= 1 for height in heights)


def test_what_figure_2_is_drawn_from(tmp_path, undrawn):
    write_results(tmp_path, ("figure2",))
    draw_figures.draw(tmp_path)
    (asked,) = undrawn
    assert (asked["name"], asked["cores"]) == ("figure2", 7)
    assert {each.labels.workers for each in asked["runs"]} == set(MEASURED)
    assert {each.labels.workers for each in asked["predicted"]} == set(SIMULATED)
    written = tables.read(tmp_path / "figure2" / evidence.SPEEDUP)
    assert [(row["kind"], int(row["workers"])) for row in written] == [
        *(("measured", k) for k in MEASURED),
        *(("simulated", k) for k in SIMULATED),
    ]
    assert [line.time_speedup for line in asked["lines"]] == pytest.approx(
        [float(row["time_speedup"]) for row in written]
    )


def test_figure_4_is_drawn_for_each_kind_of_links(tmp_path, undrawn):
    write_results(tmp_path, ("figure4",))
    draw_figures.draw(tmp_path)
    assert [asked["name"] for asked in undrawn] == ["figure4_equal", "figure4_fast_server"]
    for asked, links, server in zip(
        undrawn, ("equal", "fast_server"), ("40mbit", "2gbit"), strict=True
    ):
        assert asked["cores"] is None  # every worker has a host of its own
        assert f"links of 40mbit/s, the server's of {server}/s" in asked["title"]
        every = [*asked["runs"], *asked["predicted"]]
        assert {each.labels.links for each in every} == {links}
        assert {line.links for line in asked["lines"]} == {links}
    written = tables.read(tmp_path / "figure4" / evidence.SPEEDUP)
    assert len(written) == 2 * (len(MEASURED) + len(SIMULATED))


def test_measured_and_simulated_speedups_are_to_one_loss(tmp_path, undrawn):
    """That of the axis; what is measured ends elsewhere than what is simulated."""
    write_results(tmp_path, ("figure2", "figure4"))
    draw_figures.draw(tmp_path)
    for figure in ("figure2", "figure4"):
        targets: dict[str, set[str]] = {}
        for row in tables.read(tmp_path / figure / evidence.SPEEDUP):
            targets.setdefault(row["links"], set()).add(row["target_loss"])
        assert all(len(losses) == 1 for losses in targets.values()), targets


@pytest.mark.parametrize("figure", FIGURES)
def test_the_committed_evidence_is_that_of_the_committed_runs(tmp_path, undrawn, figure):
    committed = ROOT / draw_figures.RESULTS / figure
    if not (committed / evidence.RUNS).is_file():
        pytest.skip(f"{draw_figures.RESULTS / figure} is not there.")
    copied = tmp_path / figure
    copied.mkdir()
    for name in (evidence.RUNS, evidence.PREDICTED, recording.CONFIG):
        if (committed / name).is_file():
            shutil.copy(committed / name, copied)
    draw_figures.draw(tmp_path)
    (name,) = {evidence.CLAIMS, evidence.SPEEDUP} & {path.name for path in copied.iterdir()}
    assert (copied / name).read_bytes() == (committed / name).read_bytes()
