"""Where the files lie: a folder of the user's, the user's cache folder, or a mirror."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from urllib.parse import urlsplit

from asvrg.errors import InputError
from experiments.datasets.sources import Source

ENVIRONMENT = "ASVRG_DATA_DIR"
_ADVICE = (
    f"name the folder that holds it with --data_dir or {ENVIRONMENT}, "
    "or use --dataset=digits, which needs no download"
)


class Located(NamedTuple):
    """The paths: `files` by name, and the archive that has the others, if `files` has not all."""

    files: Mapping[str, Path]
    archive: Path | None


def locate(
    source: Source,
    sources: Mapping[str, Source],
    data_dir: str | os.PathLike[str] | None,
) -> Located:
    """Finds a data set's files: in the user's folder, else in the cache folder, else on a mirror.

    A folder may hold the files, or an archive of them, or a folder named after the data set
    (`Source.folders`) with the one or the other. What is downloaded goes to the cache folder;
    what is made by a command is on no mirror. The readers judge the files; here, only a file that
    is another data set's of the same name counts as absent (MNIST and Fashion-MNIST have the same
    names).

    Args:
      source: the data set.
      sources: all data sets by name.
      data_dir: the user's folder; None means $ASVRG_DATA_DIR if that is set.

    Returns:
      The files' places.

    Raises:
      InputError: the folder does not exist, or a file was not found and could not be downloaded,
        or has to be made by a command.
    """
    folder = _user_folder(data_dir)
    places = [] if folder is None else _places(source, folder)
    found = _search(source, sources, places, set())
    if _is_complete(source, found):
        return found

    cache = Path(_import_pooch(f"--dataset={source.name}").os_cache("asvrg"))
    target = cache / source.name
    archives = {archive.name: archive.sha256 for archive in source.archives if archive.sha256}
    sums = archives or {file.name: file.sha256 for file in source.files}
    places += _places(source, cache)
    # Earlier downloads are left to pooch, which fetches them again if they are damaged.
    found = _search(source, sources, places, {target / name for name in sums})
    if _is_complete(source, found):
        return found

    searched = ", ".join(map(str, places))
    if source.command is not None:
        raise InputError(
            f"--dataset={source.name} is not in {searched}: run {source.command} to make it, "
            f"{_ADVICE}."
        )
    missing = [name for name in sums if name not in found.files]
    try:
        fetched = {name: download(name, sums[name], source.urls, target) for name in missing}
    except InputError as error:
        owners = {
            _other_owner(place / name, source, sources) for place in places for name in missing
        }
        others = "".join(
            f" ({owner}'s files of the same names are there)" for owner in owners - {None}
        )
        raise InputError(
            f"--dataset={source.name} is not, or not as a whole, in {searched}{others}, and "
            f"{str(error).rstrip('.')}: {_ADVICE}."
        ) from None
    if archives:
        return Located(found.files, next(iter(fetched.values())))
    return Located({**found.files, **fetched}, None)


def download(
    name: str,
    sha256: str,
    urls: Sequence[str],
    folder: Path,
    *,
    rounds: int = 2,
    wait: float = 1.0,
    timeout: tuple[float, float] = (5.0, 30.0),
) -> Path:
    """Downloads a file, or keeps the copy that is there if its checksum is right.

    pooch writes to a temporary file and moves it into place once the checksum is right, so what
    bears the file's name is never a part of it.

    Args:
      name: the file's name, on the mirrors and in the folder.
      sha256: its SHA-256, in hexadecimal.
      urls: the mirrors, in the order in which they are tried; the name is appended to each.
      folder: where the file goes; created if need be.
      rounds: how often the list of mirrors is gone through.
      wait: seconds between two rounds.
      timeout: seconds to wait for a connection, and for the next bytes on it.

    Returns:
      The file's path.

    Raises:
      InputError: no mirror gave the file; the sentence says what happened at each.
    """
    pooch = _import_pooch(name)
    # Identity: what a server compresses for the way would be stored decompressed.
    downloader = pooch.HTTPDownloader(
        progressbar=True, timeout=timeout, headers={"Accept-Encoding": "identity"}
    )
    reasons: dict[str, str] = {}
    for attempt in range(rounds):
        if attempt:
            time.sleep(wait)
        for url in urls:
            try:
                path = pooch.retrieve(
                    url + name,
                    known_hash=f"sha256:{sha256}",
                    fname=name,
                    path=folder,
                    downloader=downloader,
                )
                return Path(path)
            except (OSError, ValueError) as error:  # requests' are OSErrors, a bad sum ValueError
                reasons[urlsplit(url).netloc] = _reason(error)
    details = "; ".join(f"{host}: {reason}" for host, reason in reasons.items())
    raise InputError(f"{name} could not be downloaded to {folder} ({details}).")


def _reason(error: Exception) -> str:
    import requests

    match error:
        case requests.HTTPError(response=response) if response is not None:
            return f"HTTP status {response.status_code}"
        case requests.Timeout():
            return "no answer in time"
        case requests.ConnectionError():
            return "no connection"
        case requests.RequestException():
            return "the transfer broke off"
        case OSError():
            return str(error)
    return "wrong SHA-256"


def _user_folder(data_dir: str | os.PathLike[str] | None) -> Path | None:
    flag = "--data_dir"
    if data_dir is None:
        flag, data_dir = ENVIRONMENT, os.environ.get(ENVIRONMENT)
        if not data_dir:
            return None
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        defect = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{flag}={data_dir} {defect}: expected a folder with the data sets.")
    return folder


def _places(source: Source, folder: Path) -> list[Path]:
    return [folder / name for name in source.folders] + [folder]


def _search(
    source: Source,
    sources: Mapping[str, Source],
    places: Sequence[Path],
    ignored: AbstractSet[Path],
) -> Located:
    files: dict[str, Path] = {}
    for file in source.files:
        for path in (place / file.name for place in places):
            if (
                path not in ignored
                and path.exists()
                and _other_owner(path, source, sources) is None
            ):
                files[file.name] = path
                break
    paths = (place / archive.name for archive in source.archives for place in places)
    archive = next((path for path in paths if path not in ignored and path.exists()), None)
    return Located(files, None if _has_all_files(source, files) else archive)


def _other_owner(path: Path, source: Source, sources: Mapping[str, Source]) -> str | None:
    """The name of the data set that has exactly this file, if it is another than `source`."""
    own = {file.sha256 for file in source.files}
    owners = {
        file.sha256: other.name
        for other in sources.values()
        for file in other.files
        if file.name == path.name
        and file.sha256 not in own
        # The size nearly always decides it without reading the file.
        and path.is_file()
        and path.stat().st_size == file.bytes
    }
    return owners.get(hashlib.sha256(path.read_bytes()).hexdigest()) if owners else None


def _is_complete(source: Source, found: Located) -> bool:
    return found.archive is not None or _has_all_files(source, found.files)


def _has_all_files(source: Source, files: Mapping[str, Path]) -> bool:
    return 0 < len(source.files) == len(files)


def _import_pooch(name: str) -> ModuleType:
    try:
        import pooch
    except ImportError:
        raise InputError(
            f"{name} is not in the folder given, and to look further needs the package pooch: "
            f"install asvrg[experiments], or {_ADVICE}."
        ) from None
    module: ModuleType = pooch
    return module
