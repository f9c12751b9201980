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
from experiments.paper import drawing, evidence, search
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
    speed = 1 + 0.02 * len(label.method) + 0.05 * label.seed
    return [
        (
            *label,
            *recording.Row(
                epoch,
                epoch / label.workers * (1 + 0.1 * label.seed),
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


def write_predicted(folder: Path, settings: tuple[str, ...]) -> None:
    header = ("setting", "kind", "workers", "cores", "epoch", "seconds", "train_loss", "test_error")
    lines = [
        (of, "simulated beyond", k, None, epoch, epoch / k, 2.3 * 0.2**epoch, 0.9 * 0.7**epoch)
        for of in settings
        for k in SIMULATED
        for epoch in range(EPOCHS + 1)
    ]
    tables.write_lines(folder / evidence.PREDICTED, [header, *lines])


def write_best(folder: Path) -> None:
    steps = {"sgd": (0.3, 0.2), "svrg": (0.7, 0.0), "sgd_svrg": (1.0, 0.0)}
    best = [
        search.Best(method, among, lr / times, decay, 0.4, 0.4, 0.4, 0.1, 0.01, 9)
        for method, (lr, decay) in steps.items()
        for among, times in (("all", 1), ("grid", 10))
    ]
    tables.write_csv(folder / evidence.BEST, best)


SETTINGS = {
    "figure1": ("",),
    "figure2": ("tuned_step", "quarter_step"),
    "figure3": ("",),
    "figure4": ("equal_links", "fast_server"),
}


def write_results(folder: Path, figures: tuple[str, ...]) -> Path:
    """A folder of results, of two seeds."""
    for figure in figures:
        methods = ("sgd", "svrg", "sgd_svrg") if figure in ("figure1", "figure3") else ("svrg",)
        workers = (2,) if len(methods) > 1 else MEASURED
        every = [
            Labels(method, k, setting, seed)
            for seed in (0, 1)
            for setting in SETTINGS[figure]
            for k in workers
            for method in methods
        ]
        if figure == "figure4":
            every.append(Labels("svrg", 1, "unlimited", 0))
        write_runs(folder / figure, every)
        if len(methods) == 1:
            write_predicted(folder / figure, SETTINGS[figure])
        else:
            write_best(folder / figure)
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


def drawn(folder: Path, capsys: Any, figure: str) -> set[Path]:
    """What is written, and printed, for a figure in a folder of its own."""
    own = write_results(folder, (figure,)) / figure
    before = set(own.iterdir())
    assert run(draw_figures, f"--results_dir={folder}") == 0
    written = set(own.iterdir()) - before
    paths, _, _ = capsys.readouterr().out.partition("\n\n")
    assert {Path(line) for line in paths.splitlines()} == written
    return written


def test_a_figure_is_the_same_bytes_every_time(tmp_path, capsys, monkeypatch):
    """Figure 1; of its three axes, one will do."""
    monkeypatch.setattr(drawing, "AXES", {"epoch": "epochs s"})
    one, two = (drawn(tmp_path / name, capsys, "figure1") for name in ("one", "two"))
    names = {"claims.csv", "figure1_epoch.svg", "figure1_epoch.png"}
    contents = [{path.name: path.read_bytes() for path in written} for written in (one, two)]
    assert set(contents[0]) == names
    for name in names:
        assert contents[0][name] == contents[1][name], name
    said = texts(tmp_path / "one" / "figure1" / "figure1_epoch.svg")
    for method in drawing.NAMES.values():
        assert said.count(method) == len(drawing.PANELS)
    assert {"training loss f(x)", "epochs s", "mean and range of 2 seeds"} <= set(said)


def test_every_number_of_workers_is_named(tmp_path, capsys, monkeypatch):
    """Those that were measured on too few cores, and those that never were; in one setting."""
    monkeypatch.setitem(SETTINGS, "figure2", ("tuned_step",))
    written = drawn(tmp_path, capsys, "figure2")
    names = {"speedup.csv", "figure2_tuned_step.svg", "figure2_tuned_step.png"}
    assert {path.name for path in written} == names
    said = texts(tmp_path / "figure2" / "figure2_tuned_step.svg")
    for k in SIMULATED:
        assert said.count(f"K = {k}") == 1
    assert "solid: measured, on 7 cores; dotted: simulated, a core for each worker" in said


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


@pytest.mark.parametrize(
    ("figure", "cores", "titles"),
    [
        ("figure2", 7, (", the step of Figure 1", ", a quarter of the step of Figure 1")),
        # Every worker has a host of its own.
        (
            "figure4",
            None,
            (
                "links of 40 Mbit/s, the server's of 40 Mbit/s",
                "links of 40 Mbit/s, the server's of 2000 Mbit/s",
            ),
        ),
    ],
)
def test_speedups_are_drawn_and_counted_for_each_setting(tmp_path, undrawn, figure, cores, titles):
    write_results(tmp_path, (figure,))
    draw_figures.draw(tmp_path)
    settings = SETTINGS[figure]
    assert [asked["name"] for asked in undrawn] == [f"{figure}_{each}" for each in settings]
    written = tables.read(tmp_path / figure / evidence.SPEEDUP)
    for asked, setting, title in zip(undrawn, settings, titles, strict=True):
        assert asked["cores"] == cores
        assert title in asked["title"]
        for name, workers in (("runs", MEASURED), ("predicted", SIMULATED)):
            labels = [each.labels for each in asked[name]]
            assert {each.setting for each in labels} == {setting}
            assert {each.workers for each in labels} == set(workers)
        rows = [row for row in written if row["setting"] == setting]
        assert [(row["kind"], int(row["workers"])) for row in rows] == [
            *(("measured", k) for k in MEASURED),
            *(("simulated", k) for k in SIMULATED),
        ]
        # All of them to one loss, which stands at the axis.
        assert len({row["target_loss"] for row in rows}) == 1
        found = [row["time_speedup"] for row in rows]
        assert found == [
            "" if line.time_speedup is None else f"{line.time_speedup:.9g}"
            for line in asked["lines"]
        ]
    assert len(written) == len(settings) * (len(MEASURED) + len(SIMULATED))


def test_the_printed_tables_are_those_of_the_csv(tmp_path, undrawn, capsys):
    write_results(tmp_path, FIGURES)
    assert run(draw_figures, f"--results_dir={tmp_path}") == 0
    printed = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    ]
    for figure in ("figure1", "figure3"):
        claims = {
            (row["what"], row["of"]): [float(row[name]) for name in ("mean", "smallest", "largest")]
            for row in tables.read(tmp_path / figure / evidence.CLAIMS)
        }
        at = [row[0] for row in printed].index(f"Figure {figure[-1]}: in the end")
        for row, step in zip(
            printed[at + 2 : at + 5], ("0.3 / (1 + s)^0.2", "0.7", "1"), strict=True
        ):
            assert row[1] == step
            mean, smallest, largest = claims["train_loss in the end", row[0]]
            assert row[2] == f"{mean:.3f} ({smallest:.3f} to {largest:.3f})"
            mean, smallest, largest = claims["test_error in the end", row[0]]
            assert row[4] == f"{mean:.2%} ({smallest:.2%} to {largest:.2%})".replace("%", " %")
    for figure in ("figure2", "figure4"):
        for setting in SETTINGS[figure]:
            title = f"Figure {figure[-1]}: K, {setting.replace('_', ' ')}"
            at = [row[0] for row in printed].index(title)
            assert [row[0] for row in printed[at + 2 : at + 6]] == [str(k) for k in SIMULATED]
            rows = {
                (row["kind"], row["workers"]): row
                for row in tables.read(tmp_path / figure / evidence.SPEEDUP)
                if row["setting"] == setting
            }
            target = float(rows["measured", "7"]["target_loss"])
            assert printed[at][1] == f"seconds to loss {target:.3g}"
            line = printed[at + 3]
            assert line[1] in (f"{float(rows['measured', '7']['seconds'] or 0):.3g}", "not reached")
            assert line[6] == f"{float(rows['simulated', '7']['time_speedup']):.2f}"
            assert printed[at + 5][1:6] == [""] * 5  # 29 were simulated alone


@pytest.mark.parametrize("figure", FIGURES)
def test_the_committed_evidence_is_that_of_the_committed_runs(tmp_path, undrawn, figure):
    committed = ROOT / draw_figures.RESULTS / figure
    copied = tmp_path / figure
    copied.mkdir()
    for name in (evidence.RUNS, evidence.PREDICTED, recording.CONFIG):
        if (committed / name).is_file():
            shutil.copy(committed / name, copied)
    draw_figures.draw(tmp_path)
    (name,) = {evidence.CLAIMS, evidence.SPEEDUP} & {path.name for path in copied.iterdir()}
    assert (copied / name).read_bytes() == (committed / name).read_bytes()
