"""The files of a trace: arrays and a record each, in few bytes, and nothing taken on trust."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asvrg.errors import InputError
from asvrg.types import Array, Data, Shard, Times
from experiments import files

TICKS = 10_000_000  # in a second: times are kept to 0.1 microseconds
SLACK = 1 << 16  # bytes of a file that are not numbers of its arrays, at most


def digest(tree: Array | Data) -> str:
    """SHA-256 of arrays with their dtypes and shapes.

    Args:
      tree: a pytree of arrays.

    Returns:
      Hexadecimal digits.

    >>> digest(np.zeros(2)) == digest(np.zeros(2)) != digest(np.zeros(3))
    True
    """
    total = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        total.update(f"{leaf.dtype.str}{leaf.shape}".encode())
        total.update(np.ascontiguousarray(leaf).data)
    return total.hexdigest()


def write(path: Path, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file, as a whole or not at all.

    Args:
      path: of the file.
      record: what JSON can hold.
      arrays: by name, other than "record".

    Raises:
      OSError: it cannot be written.
    """
    everything: dict[str, Any] = {**arrays}
    everything["record"] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    files.write_whole(path, lambda file: np.savez_compressed(file, **everything))


def content(path: Path, without: str, *, limit: int) -> bytes:
    """The bytes of a file.

    Args:
      path: of the file.
      without: what its folder is if it cannot be read, for the sentence.
      limit: bytes that such a file has at most.

    Raises:
      InputError: it cannot be read, or is larger.
    """
    try:
        if path.stat().st_size > limit:
            raise InputError(f"{path} is larger than what this program writes there.")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path.parent} {without}: {path} ({error.strerror}).") from error
    except ValueError as error:  # a name that no file can have
        raise InputError(f"{str(path.parent)!r} {without} ({error}).") from error


def read(path: Path, *, limit: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the arrays of a file that `write` has written.

    Args:
      path: of the file.
      limit: bytes of its arrays and its record, at most.

    Returns:
      The record, and the arrays by name, read-only.

    Raises:
      InputError: it cannot be read, is damaged, or no such file.
    """
    packed = content(path, "lacks a file", limit=limit)
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            if sum(info.file_size for info in archive.infolist()) > limit:
                raise ValueError("its arrays are too large")
            for info in archive.infolist():
                # What the other methods decompress to in one piece is not limited by what is
                # asked for.
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"compression method {info.compress_type}")
                with archive.open(info) as stream:
                    # To its end, where zipfile compares checksums; np.load may not get there.
                    packed_array = stream.read(info.file_size) + stream.read(1)
                arrays[info.filename.removesuffix(".npy")] = _array(packed_array)
        record = json.loads(arrays.pop("record").tobytes())
        if not isinstance(record, dict):
            raise ValueError("its record is no record")
    except Exception as error:  # zipfile, zlib, numpy and json have many
        raise InputError(f"{path} is damaged ({error}).") from error
    return record, arrays


def _array(packed: bytes) -> np.ndarray:
    """An array in numpy's format, never a pickle, and only if all of it is there."""
    file = io.BytesIO(packed)
    np.lib.format.read_magic(file)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.kind not in "iuf" or math.prod(shape) * dtype.itemsize != len(packed) - file.tell():
        raise ValueError("an array is not of its size")
    values = np.frombuffer(packed, dtype, offset=file.tell())
    return values.reshape(shape, order="F" if fortran else "C")


def smallest(values: np.ndarray) -> np.ndarray:
    """Whole numbers in the smallest type that holds them, without a sign if none needs it.

    >>> smallest(np.array([3, 300])).dtype, smallest(np.array([-3, 200])).dtype
    (dtype('uint16'), dtype('int16'))
    """
    low, high = np.min(values, initial=0), np.max(values, initial=0)
    return values.astype(np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high)))


def ticks(times: Times) -> np.ndarray:
    """Times of m updates as whole numbers [3, m], which are small: differences."""
    read, computed, landed = (np.rint(np.asarray(each) * TICKS).astype(np.int64) for each in times)
    return np.stack([np.diff(landed, prepend=0), landed - computed, computed - read])


def times(ticks: np.ndarray) -> Times:
    """The Times that `ticks` was made of, to 0.1 microseconds."""
    step, wait, work = ticks.astype(np.int64)
    landed = np.cumsum(step)
    return Times((landed - wait - work) / TICKS, (landed - wait) / TICKS, landed / TICKS)


def write_shards(folder: Path, shards: Sequence[Shard]) -> str:
    """Writes the shards of an epoch's workers, unless there is a file of the same ones.

    Args:
      folder: of the trace.
      shards: of all workers.

    Returns:
      The name of their file, which is made of what is in it.

    Raises:
      OSError: it cannot be written.
    """
    arrays: dict[str, np.ndarray] = {
        "sizes": np.array([len(shard.samples) for shard in shards], np.int64),
        "weights": np.array([shard.weight for shard in shards], np.float64),
        "samples": np.concatenate([shard.samples for shard in shards]).astype(np.int32),
    }
    name = f"shards-{digest(arrays)[:16]}.npz"
    if not (folder / name).exists():
        write(folder / name, {}, arrays)
    return name


def read_shards(
    folder: Path, name: str, *, num_samples: int, num_workers: int
) -> tuple[Shard, ...]:
    """The shards of an epoch's workers.

    Args:
      folder: of the trace.
      name: from `write_shards`.
      num_samples: n.
      num_workers: K, when the run began.

    Returns:
      A Shard for each worker.

    Raises:
      InputError: the file is missing or damaged, or has other shards or those of other data.
    """
    if not re.fullmatch(r"shards-[0-9a-f]{16}\.npz", name):
        raise InputError(f"shards must be in a file of this folder, got {name!r}.")
    path = folder / name
    # The live ones divide all samples anew with every death, and have numbers of their own then.
    limit = SLACK + num_workers * (4 * num_samples + 16 * num_workers)
    _, arrays = read(path, limit=limit)
    try:
        if name != f"shards-{digest(arrays)[:16]}.npz":
            raise ValueError("it has another one's name")
        sizes, weights, samples = arrays["sizes"], arrays["weights"], arrays["samples"]
        if not (np.all(samples >= 0) and np.all(samples < num_samples) and np.all(weights >= 0)):
            raise ValueError("its samples or weights are out of range")
        pieces = np.split(samples, np.cumsum(sizes)[:-1])
        return tuple(map(Shard._make, zip(pieces, weights.tolist(), strict=True)))
    except Exception as error:  # whatever is wrong with foreign bytes
        raise InputError(f"{path} is damaged ({error}).") from error
