"""The folder of a run: a new one, or one with a run to go on with."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from absl import flags

from asvrg.errors import InputError
from experiments import checkpoints, files


def define_out_dir(values: flags.FlagValues) -> None:
    """Adds --out_dir, from which `claim_folder` makes a folder."""
    flags.DEFINE_string(
        "out_dir",
        None,
        "Folder for the results. Default: a new one under runs/.",
        flag_values=values,
    )


def define_resume(values: flags.FlagValues) -> None:
    """Adds --resume, which `folder_to_resume` obeys."""
    flags.DEFINE_bool(
        "resume",
        None,
        "Go on with the run in --out_dir, or without that with the newest of its kind under runs/, "
        "and refuse to start a new one; with --noresume refuse to go on. Default: go on with the "
        "run in --out_dir if there is one, else start it.",
        flag_values=values,
    )


def claim_folder(out_dir: str | None, name: str, *, holds: str, kind: str | None = None) -> Path:
    """Makes the folder for a run's results.

    Args:
      out_dir: as the user gave it; None for a new folder below runs/.
      name: of the run, the beginning of a new folder's name.
      holds: the file by which another run's results are known.
      kind: of the checkpoints that a run goes on from, the name of their folder; None if it never
        does.

    Returns:
      The folder, which exists, can be written to, and holds no results, or those of a run that has
      checkpoints to go on from.

    Raises:
      InputError: it cannot be made or written to, or holds another run's results.
    """
    if out_dir is None:
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        folder = Path("runs") / f"{name}-{now}"
    else:
        folder = Path(out_dir)
    if out_dir is not None and not out_dir.strip():
        raise InputError("--out_dir must name a folder, got an empty name.")
    # os.path: what cannot be looked at cannot be written to either, which is told below.
    if os.path.exists(folder / holds) and not (kind and checkpoints.exist_in(folder, kind)):
        raise _other_run(folder, holds)
    # A run that goes on is known by its checkpoints, before it has a file of results.
    for other in {checkpoints.FOLDER, checkpoints.UNITS} - {kind} if kind else ():
        if os.path.isdir(folder / other):
            raise _other_run(folder, f"folder {other}")
    files.make_folder("--out_dir must be a folder", folder)
    return folder


def _other_run(folder: Path, what: str) -> InputError:
    return InputError(
        "--out_dir must be a folder without another run's results, got "
        f"{folder}, which holds a {what}."
    )


def folder_to_resume(values: flags.FlagValues, name: str, kind: str) -> str | None:
    """--out_dir, or the folder that --resume finds, after what --resume and --noresume ask for.

    Args:
      values: parsed, with --out_dir and --resume.
      name: of the run, as in `claim_folder`.
      kind: of the checkpoints, the name of their folder.

    Returns:
      As `claim_folder` takes it.

    Raises:
      InputError: there is no run to go on with, or one with --noresume.
    """
    if values.resume and values.out_dir is None:
        runs = [
            path
            for path in sorted(Path("runs").glob(f"{name}-*"))
            if checkpoints.exist_in(path, kind)
        ]
        if not runs:
            raise InputError(
                f"--resume must find a run to go on with, got none in runs/{name}-*; name its "
                "folder with --out_dir."
            )
        # The ends of their names are dates, and so is the order in which they sort.
        return str(runs[-1])
    if values.resume is not None and values.out_dir:
        there = checkpoints.exist_in(Path(values.out_dir), kind)
        if values.resume and not there:
            raise InputError(
                f"--resume must find a run to go on with, got --out_dir={values.out_dir}, which "
                "holds no checkpoint."
            )
        if there and not values.resume:
            raise InputError(
                f"--noresume must be given a folder without a run, got --out_dir={values.out_dir}, "
                "which holds a checkpoint."
            )
    out_dir: str | None = values.out_dir
    return out_dir
