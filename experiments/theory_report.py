"""What the theory says of a run, beside what the run did.

    python -m experiments.theory_report --dataset=digits
    python -m experiments.theory_report --dataset=mnist --driver=threads --num_threads=2
    python -m experiments.theory_report --run_dir=FOLDER

Without --run_dir it makes a short run of SVRG with the theory's own step and inner length, or
those of --lr and --inner_steps, and looks at ||grad f||^2 before every update. A folder of
train_shared or train_distributed has it at the beginnings of epochs. In the folder of the results:
epochs.csv, smoothness.csv, theory.png and config.json.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from asvrg import theory
from asvrg.errors import INT32, InputError, check_count, check_real
from asvrg.sampling import Sampler
from asvrg.theory import Choice
from experiments import folders, iterations, launch, problem, provenance, recording, tables
from experiments.problem import Problem
from experiments.theory import coverage, drawing, judging, measuring
from experiments.theory.judging import Findings
from experiments.theory.measuring import Measured

EPOCHS, SMOOTHNESS, FIGURE = "epochs.csv", "smoothness.csv", "theory.png"
DRIVERS = ("simulate", "threads")
# What may stand beside --run_dir.
WITH_RUN_DIR = frozenset({"run_dir", "data_dir", "u0", "alpha", "num_singles", "out_dir", "help"})


def define_flags(values: flags.FlagValues) -> None:
    """Adds all flags of this binary."""
    problem.define_flags(values)
    values.set_default("activation", "tanh")
    iterations.define_flags(values, inner_steps=1)
    values.set_default("inner_steps", None)  # the theory's
    flags.DEFINE_float("u0", 0.1, "u0 of Theorems 2 and 4, above 0, below 1.", flag_values=values)
    flags.DEFINE_float(
        "alpha", 2 / 3, "alpha of Theorems 2 and 4, above 0, at most 1.", flag_values=values
    )
    flags.DEFINE_float("lr", None, "eta of the run. Default: the theory's.", flag_values=values)
    flags.DEFINE_integer(
        "block_size",
        0,
        "B, coordinates that an iteration updates; 0 for all of x.",
        flag_values=values,
    )
    flags.DEFINE_integer("num_epochs", 5, "S, epochs of the run.", flag_values=values)
    flags.DEFINE_enum("driver", "simulate", DRIVERS, "What runs.", flag_values=values)
    flags.DEFINE_integer(
        "delay", 3, "Of every simulated update, in updates; at most m - 1.", flag_values=values
    )
    flags.DEFINE_integer("num_threads", 2, "K, of --driver=threads.", flag_values=values)
    flags.DEFINE_integer(
        "read_period",
        1,
        "Iterations of a thread from one read of x to the next.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_singles", 200, "Single f_i whose L is estimated, at most n.", flag_values=values
    )
    flags.DEFINE_string(
        "run_dir",
        None,
        "Folder of a run of train_shared or train_distributed, in place of a run of its own.",
        flag_values=values,
    )
    folders.define_out_dir(values)


def main(values: flags.FlagValues) -> int:
    """Runs or reads a run, prints the report, and writes csv, png and json."""
    _check_flags(values)
    if values.run_dir is None:
        problem_ = problem.from_flags(values)
        described = {name: values[name].value for name in ("dataset", "hidden", "activation", "l2")}
        block_size = check_count(
            "--block_size", values.block_size, least=0, most=problem_.objective.dim
        )
        sampler = iterations.make_sampler(values, problem_, block_size=block_size or None)
        folder = folders.claim_folder(values.out_dir, "theory_report", holds=EPOCHS)
        measured = _own_run(values, problem_, sampler)
    else:
        problem_, measured, described = measuring.recorded_run(
            Path(values.run_dir), values.data_dir
        )
        folder = folders.claim_folder(values.out_dir, "theory_report", holds=EPOCHS)
    if described["activation"] == "relu":
        measured.uncovered.insert(0, coverage.KINKS)
    num_singles = min(values.num_singles, measured.num_samples)
    estimates = measuring.curvatures(problem_, measured.points, num_singles, values.seed)
    findings = judging.judge(measured, estimates, values.u0, values.alpha)
    text = report(measured, findings, _network(described, problem_))
    resolved = _resolved(measured, findings)
    recording.write_config(folder, provenance.describe(values, resolved))
    tables.write_csv(folder / SMOOTHNESS, estimates)
    drawing.draw_report(
        folder / FIGURE,
        measured.rows,
        findings.setting,
        measured.gap,
        covered=not measured.uncovered,
    )
    tables.write_csv(folder / EPOCHS, measured.rows)  # the last, as the folder is known by it
    print(f"{text}\nresults            {folder}")
    return 0


def report(measured: Measured, findings: Findings, network: str) -> str:
    """The report in lines of text.

    Args:
      measured: the run.
      findings: of it.
      network: what the problem is, in words.

    Returns:
      Lines.
    """
    choice, setting, suggested = findings.choice, findings.setting, findings.suggested
    condition, side = ("(20)", "(19)") if findings.theorem == 3 else ("(13)", "(12)")
    admitted = int(theory.admissible_delay(choice))
    by_paper = f"{admitted} by {condition}"
    if admitted < 0:
        by_paper = f"none by {condition}, which needs u0 b < 3 / 28"
    if suggested.inner_steps >= 1:
        itself = f"{int(theory.tolerated_delay(suggested))} by Theorem {findings.theorem} itself"
    else:
        itself = "and m is 0: u0 must be smaller"
    total = sum(row.updates for row in measured.rows)
    where = "all updates"
    if math.isnan(measured.rows[0].mean):
        where = "the beginnings of epochs, a sample of what (12) and (19) average"
    predicted = "nothing is predicted"
    if math.isfinite(findings.predicted):
        times = findings.predicted / findings.measured
        predicted = f"at most {findings.predicted:.3g} by {side}, {times:.3g} times that"
    entries = [
        ("problem", network),
        ("run", f"{measured.source}; {len(measured.rows)} epochs, {total} updates"),
        ("", f"eta {measured.lr:.3g}, m {setting.inner_steps}"),
        ("L", _of_l(measured, setting.smoothness)),
        *(("", f"{each.value:.3g} of {each.of} at {each.point}") for each in findings.curvatures),
        (
            "suggested",
            f"eta {suggested.lr:.3g}, m {suggested.inner_steps} (u0 {choice.u0:g}, "
            f"b {choice.batch_size}, alpha {choice.alpha:.3g}, d / B {choice.blocks:.3g})",
        ),
        ("admissible delay", f"{by_paper}; {itself}"),
        *_for_measured_delay(findings, condition),
        (
            "measured delay",
            f"{setting.max_delay} at most; m - 1 = {setting.inner_steps - 1} would fit",
        ),
        ("verdict", findings.verdict),
        ("||grad f||^2", f"{findings.measured:.3g} on average over {where}"),
        ("predicted", predicted),
    ]
    return "\n".join(f"{name:<18} {text}" for name, text in entries)


def _of_l(measured: Measured, smoothness: float) -> str:
    if coverage.KINKS in measured.uncovered:
        return f"none, with relu; between its kinks, from below, {smoothness:.3g}:"
    return f"{smoothness:.3g}, the largest of these estimates from below:"


def _for_measured_delay(findings: Findings, condition: str) -> list[tuple[str, str]]:
    """From which u0 on (13) or (20) admits the measured delay; the condition falls with u0."""
    u0 = np.geomspace(1e-9, 1, 20_000, endpoint=False)
    delay, choice = findings.setting.max_delay, findings.choice
    good = u0[theory.admissible_delay(choice._replace(u0=u0)) >= delay]
    if findings.choice.u0 <= good[-1]:
        return []
    smaller = choice._replace(u0=float(f"{good[-1] * 0.995:.2g}"))
    if theory.admissible_delay(smaller) < delay:
        smaller = choice._replace(u0=float(good[-1]))
    setting = theory.theorem_setting(smaller, findings.setting.smoothness)
    return [
        (
            "",
            f"{condition} admits the measured {delay} with u0 {smaller.u0:.2g}: eta "
            f"{setting.lr:.3g}, m {setting.inner_steps}",
        )
    ]


def _own_run(values: flags.FlagValues, problem_: Problem, sampler: Sampler) -> Measured:
    """A run with the theory's eta and m for L at x^0, where the flags do not give others."""
    num_singles = min(values.num_singles, sampler.num_samples)
    lr, inner_steps = values.lr, values.inner_steps
    if lr is None or inner_steps is None:
        at_start = measuring.curvatures(problem_, {"x^0": problem_.x0}, num_singles, values.seed)
        choice = Choice(
            values.u0,
            sampler.batch_size,
            sampler.num_samples,
            values.alpha,
            sampler.dim / (sampler.block_size or sampler.dim),
        )
        suggested = theory.theorem_setting(choice, max(each.value for each in at_start))
        lr = float(suggested.lr) if lr is None else lr
        inner_steps = int(suggested.inner_steps) if inner_steps is None else inner_steps
        if inner_steps < 1:
            raise InputError(
                "--u0 must be small enough that m = d n^alpha / (6 u0 b B) is at least 1, got "
                f"{values.u0} with b = {sampler.batch_size} and n = {sampler.num_samples}."
            )
    return measuring.own_run(
        problem_,
        sampler,
        lr=lr,
        inner_steps=inner_steps,
        num_epochs=values.num_epochs,
        delay=values.delay if values.driver == "simulate" else None,
        num_threads=values.num_threads,
        read_period=values.read_period,
    )


def _check_flags(values: flags.FlagValues) -> None:
    if values.run_dir is not None:
        for name in values:
            if launch.given(values, name) and name not in WITH_RUN_DIR:
                raise InputError(f"--{name} is that of the run in --run_dir, and is not accepted.")
    check_real("--u0", values.u0, above=True, most=1.0, below=True)
    check_real("--alpha", values.alpha, above=True, most=1.0)
    if values.lr is not None:
        check_real("--lr", values.lr, above=True)
    for name in ("inner_steps", "num_epochs", "num_threads", "read_period", "num_singles"):
        if values[name].value is not None:
            check_count(f"--{name}", values[name].value, limit=INT32)
    check_count("--delay", values.delay, least=0, limit=INT32)
    check_count("--num_threads", values.num_threads, limit=iterations.MOST_WORKERS)
    other = {"simulate": ("num_threads", "read_period"), "threads": ("delay",)}
    for name in other[values.driver]:
        if launch.given(values, name):
            owner = "threads" if values.driver == "simulate" else "simulate"
            raise InputError(f"--{name} belongs to --driver={owner}, got --driver={values.driver}.")


def _network(described: dict[str, Any], problem_: Problem) -> str:
    inputs, labels = problem_.train
    sizes = [inputs.shape[1], *described["hidden"], int(np.max(np.asarray(labels))) + 1]
    layers = "x".join(map(str, sizes))
    return (
        f"{described['dataset']}, {described['activation']} network {layers}, n {len(labels)}, d "
        f"{problem_.objective.dim}, l2 {described['l2']:g}"
    )


def _resolved(measured: Measured, findings: Findings) -> dict[str, Any]:
    return {
        "source": measured.source,
        "gap": measured.gap,
        "uncovered": measured.uncovered,
        "setting": {name: _plain(value) for name, value in findings.setting._asdict().items()},
        "suggested": {name: _plain(value) for name, value in findings.suggested._asdict().items()},
        "tolerated_delay": findings.tolerated,
        "verdict": findings.verdict,
        "predicted": findings.predicted if math.isfinite(findings.predicted) else None,
        "measured": findings.measured,
    }


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


if __name__ == "__main__":
    launch.start(main, define_flags)
