"""The table third_party/datasets.toml as records: the data sets' files and where they come from."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from asvrg.errors import InputError


class DataFile(NamedTuple):
    """One canonical file.

    Attributes:
      name: the file's name, the same wherever it comes from.
      split: "train" or "test".
      holds: "inputs" or "labels" for an idx file, "batch" for a pickle of CIFAR-10's with both.
      shape: of the array that it holds, the number of images first.
      bytes: the file's length.
      sha256: the file's SHA-256, in hexadecimal.
    """

    name: str
    split: str
    holds: str
    shape: tuple[int, ...]
    bytes: int
    sha256: str


class Archive(NamedTuple):
    """An archive of the whole data set; it can be downloaded if `sha256` is known."""

    name: str
    sha256: str | None


class Source(NamedTuple):
    """One data set.

    Attributes:
      name: the data set's name.
      format: "idx", "cifar", "features" or "scikit-learn".
      num_classes: the number of classes.
      image_shape: the shape of one image, or of its features.
      available: the number of images by split.
      default: the number of images taken unless the user says otherwise, by split.
      folders: the names of folders that may hold the files, within a data folder.
      urls: the mirrors, to which a file's name is appended.
      files: the canonical files, in the order of their images.
      archives: tar archives of the files; for "features", the one .npz.
      command: what makes the archive, where it cannot be downloaded.
    """

    name: str
    format: str
    num_classes: int
    image_shape: tuple[int, ...]
    available: Mapping[str, int]
    default: Mapping[str, int]
    folders: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    files: tuple[DataFile, ...] = ()
    archives: tuple[Archive, ...] = ()
    command: str | None = None


def read_sources(path: Path | None = None) -> dict[str, Source]:
    """Reads the table of data sets.

    Args:
      path: a TOML file; by default third_party/datasets.toml of this repository.

    Returns:
      The sources by name, in the file's order.

    Raises:
      InputError: the table is not there.
    """
    if path is None:
        path = Path(__file__).resolve().parents[2] / "third_party" / "datasets.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing: expected the table of data sets, so run from a clone of the "
            "repository."
        ) from None
    return {name: _source(name, entry) for name, entry in table.items()}


def _source(name: str, entry: Mapping[str, Any]) -> Source:
    return Source(
        name=name,
        format=entry["format"],
        num_classes=entry["num_classes"],
        image_shape=tuple(entry["image_shape"]),
        available={split: entry[split]["available"] for split in ("train", "test")},
        default={split: entry[split]["default"] for split in ("train", "test")},
        folders=tuple(entry.get("folders", ())),
        urls=tuple(entry.get("urls", ())),
        files=tuple(
            DataFile(f["name"], f["split"], f["holds"], tuple(f["shape"]), f["bytes"], f["sha256"])
            for f in entry.get("files", ())
        ),
        archives=tuple(Archive(a["name"], a.get("sha256")) for a in entry.get("archives", ())),
        command=entry.get("command"),
    )
