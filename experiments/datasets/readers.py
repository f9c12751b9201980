"""Readers: gzipped idx, CIFAR-10's pickled batches, archives of batches, features in an .npz.

They take what is expected as arguments, check sizes before they take memory, look at the structure
before the checksum where that says more, and turn every defect into a sentence that names the file.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import math
import os
import pickle
import pickletools
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from asvrg.errors import InputError

_HEAD = 1 << 16  # compressed bytes read before the header's promises are checked
_ARCHIVE_SLACK = 1 << 24  # bytes that an archive may hold beside the members that are wanted


def read_idx(path: Path, shape: Sequence[int], sha256: str) -> NDArray[np.uint8]:
    """Reads a gzipped idx file of unsigned bytes.

    The format is two zero bytes, the type (8: unsigned byte), the number of dimensions, every
    dimension as a big-endian 32-bit integer, and the values in row-major order
    (http://yann.lecun.com/exdb/mnist/).

    Args:
      path: the file.
      shape: the expected shape.
      sha256: the expected SHA-256 of the compressed file, in hexadecimal.

    Returns:
      The values, uint8, of the given shape, read-only.

    Raises:
      InputError: the file is missing, empty, truncated, too long, damaged, or another file.
    """
    size = math.prod(shape)
    expected = f"{_times(shape)} bytes after its header"
    with _open(path, f"a gzipped idx file of {_times(shape)} bytes") as stream:
        head = stream.read(_HEAD)
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)  # 16: gzip's header and checksum
        try:
            _check_idx_header(path, decoder.decompress(head, 4 + 4 * len(shape)), shape)
            # gzip hardly ever makes data longer, so a file longer than this need not be read.
            if os.fstat(stream.fileno()).st_size > 1.01 * size + _HEAD:
                raise InputError(f"{path} is too long: expected {expected}, gzipped.")
            rest = stream.read()
            values = decoder.decompress(decoder.unconsumed_tail + rest, size + 1)
        except zlib.error as error:
            raise InputError(
                f"{path} is corrupted, or not gzipped: expected {expected}, found {error}."
            ) from None
    if len(values) > size:
        raise InputError(f"{path} is too long or corrupted: expected {expected}, found more.")
    if len(values) < size:
        raise InputError(f"{path} is truncated: expected {expected}, found {len(values)} bytes.")
    if not decoder.eof:
        raise InputError(f"{path} is truncated: expected gzip's checksum at its end, found none.")
    _check_sha256(str(path), head + rest, sha256)
    return np.frombuffer(values, np.uint8).reshape(shape)


def _check_idx_header(path: Path, header: bytes, shape: Sequence[int]) -> None:
    magic = bytes([0, 0, 8, len(shape)])
    length = 4 + 4 * len(shape)
    if header[:4] != magic[: len(header)]:
        raise InputError(
            f"{path} is another kind of file: expected the magic number 0x{magic.hex()} (idx, "
            f"unsigned bytes, {len(shape)} dimensions), found 0x{header[:4].hex()}."
        )
    if len(header) < length:
        raise InputError(
            f"{path} is truncated: expected a header of {length} bytes, found {len(header)}."
        )
    found = [int.from_bytes(header[i : i + 4], "big") for i in range(4, length, 4)]
    if found != list(shape):
        raise InputError(
            f"{path} has the wrong shape: expected {_times(shape)}, found {_times(found)}."
        )


def read_batch_file(
    path: Path, shape: tuple[int, int], size: int, sha256: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Reads one of CIFAR-10's python batches; all but `path` as in `read_batch`."""
    with _open(path, f"a batch of CIFAR-10, {size} bytes") as stream:
        _check_size(str(path), os.fstat(stream.fileno()).st_size, size)
        raw = stream.read(size)
    return read_batch(raw, str(path), shape, size, sha256)


def read_batch(
    raw: bytes, where: str, shape: tuple[int, int], size: int, sha256: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decodes one of CIFAR-10's python batches, a pickled dict of `data` and `labels`.

    A pickle is a program. So the checksum comes first, and then an unpickler that knows only the
    names that these files use and runs nothing under them
    (https://docs.python.org/3/library/pickle.html#restricting-globals).

    Args:
      raw: the file's bytes.
      where: the file's name, for the sentences.
      shape: the expected shape [n, p] of the pixels.
      size: the expected length of `raw`.
      sha256: the expected SHA-256 of `raw`, in hexadecimal.

    Returns:
      The pixels [n, p] uint8 (p runs over channel, row, column), read-only, and the labels [n]
      int64.

    Raises:
      InputError: the bytes are not the ones expected.
    """
    _check_size(where, len(raw), size)
    _check_sha256(where, raw, sha256)
    expected = f"a dict with 'data', {_times(shape)} bytes, and 'labels', {shape[0]} integers"
    try:
        _check_opcodes(raw)
        batch = _BatchUnpickler(io.BytesIO(raw), encoding="bytes").load()
    except Exception as error:  # noqa: BLE001, pickle's documentation excludes no exception
        reason = str(error) or type(error).__name__
        raise InputError(f"{where} is corrupted: expected {expected}, found {reason}.") from None
    if not isinstance(batch, dict):
        raise InputError(f"{where} is not a batch of CIFAR-10: expected {expected}.")
    pixels, labels = batch.get(b"data"), batch.get(b"labels")
    data = pixels.row_major_bytes(shape) if isinstance(pixels, _PickledArray) else None
    if data is None:
        raise InputError(f"{where} has no pixels, or of another shape: expected {expected}.")
    if not _are_integers(labels, shape[0]):
        raise InputError(f"{where} has no labels, or not one an image: expected {expected}.")
    return np.frombuffer(data, np.uint8).reshape(shape), np.array(labels, np.int64)


def _are_integers(labels: object, count: int) -> bool:
    return (
        isinstance(labels, list)
        and len(labels) == count
        and all(type(label) is int and abs(label) < 2**31 for label in labels)
    )


class _PickledDtype:
    """Stands for numpy.dtype while unpickling."""

    def __init__(self, *args: Any) -> None:
        self.code = args[0] if args else None

    def __setstate__(self, state: Any) -> None:
        """Takes what pickle gives numpy's; byte order and alignment mean nothing for bytes."""


class _PickledArray:
    """Stands for numpy.ndarray while unpickling: keeps the state that numpy would be given."""

    def __init__(self, *args: Any) -> None:
        self._state: Any = None

    def __setstate__(self, state: Any) -> None:
        self._state = state

    def row_major_bytes(self, shape: tuple[int, int]) -> bytes | None:
        """The array's bytes if it is a row-major array of unsigned bytes of this shape."""
        match self._state:
            case (_, tuple() as found, _PickledDtype(code=b"u1"), False, bytes() as data):
                if found == tuple(shape) and len(data) == math.prod(shape):
                    return data
        return None


class _BatchUnpickler(pickle.Unpickler):
    """Knows the three names that CIFAR-10's files use, and gives stand-ins for them."""

    def find_class(self, module: str, name: str) -> Any:
        match (module, name):
            case ("numpy.core.multiarray", "_reconstruct") | ("numpy", "ndarray"):
                return _PickledArray
            case ("numpy", "dtype"):
                return _PickledDtype
        raise pickle.UnpicklingError(f"a use of {module}.{name}, which is refused")


def _check_opcodes(raw: bytes) -> None:
    """Raises an error where a pickle promises more than it holds: pickle takes memory for that."""
    for opcode, argument, _ in pickletools.genops(raw):
        if opcode.name.endswith("PUT") and int(argument or 0) > len(raw):
            raise pickle.UnpicklingError(f"a memo of {argument} entries")


def read_members(path: Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Reads files out of a .tar.gz or .tar.xz archive; nothing is written to disk.

    Args:
      path: the archive.
      sizes: the members wanted, by the last part of their names, each with its length in bytes.

    Yields:
      Name and contents of every member wanted, in the archive's order.

    Raises:
      InputError: the archive is missing, damaged or incomplete, or a member is not a file of that
        length.
    """
    wanted = ", ".join(sizes)
    left = dict(sizes)
    limit = sum(sizes.values()) + _ARCHIVE_SLACK
    opener = lzma.open if path.suffix == ".xz" else gzip.open
    with _open(path, f"a tar archive with {wanted}") as compressed:
        try:
            with (
                opener(compressed) as stream,
                tarfile.open(fileobj=_Capped(stream, limit), mode="r|", bufsize=1 << 20) as tar,
            ):
                for member in tar:
                    name = PurePosixPath(member.name).name
                    if name in left:
                        where = f"{path} (member {member.name})"
                        contents = tar.extractfile(member) if member.isreg() else None
                        if contents is None:
                            raise InputError(f"{where} is not a file: expected a regular file.")
                        _check_size(where, member.size, left.pop(name))
                        yield name, contents.read()
                    if not left:
                        return
        except (EOFError, OSError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
            raise InputError(
                f"{path} is truncated or corrupted: expected a tar archive with {wanted}, "
                f"found {error}."
            ) from None
    raise InputError(
        f"{path} is incomplete: expected a tar archive with {wanted}, found no {', '.join(left)}."
    )


class _Capped(io.RawIOBase):
    """A stream that gives no more than `limit` bytes, however far a file would decompress."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError("far more data than that")
        return data


def read_features(
    path: Path, num_features: int, limits: Mapping[str, int]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Reads features and labels from an .npz, where they are SPLIT_inputs and SPLIT_labels.

    What else the file holds is left alone. Nothing in it is unpickled.

    Args:
      path: the file.
      num_features: p.
      limits: the largest number of samples, of every split that is wanted.

    Returns:
      By split, the features [n, p] float32 and the labels [n] int32, read-only.

    Raises:
      InputError: the file is missing, damaged or another file, or a feature is not finite.
    """
    names = " and ".join(f"{split}_inputs, {split}_labels" for split in limits)
    expected = f"an .npz with the arrays {names}"
    parts = {}
    with _open(path, expected) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                for split, most in limits.items():
                    inputs = _read_npy(archive, f"{split}_inputs", "float32", most, num_features)
                    parts[split] = inputs, _read_npy(archive, f"{split}_labels", "int32", most)
        except InputError as error:
            raise InputError(f"{path} {error}") from None
        except Exception as error:  # noqa: BLE001, zipfile and numpy exclude no exception
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise InputError(
                f"{path} is truncated, corrupted or another file: expected {expected}, "
                f"found: {reason}."
            ) from None
    for split, (inputs, labels) in parts.items():
        if len(inputs) != len(labels):
            raise InputError(
                f"{path} has {len(labels)} {split}_labels: expected one for each of the "
                f"{len(inputs)} {split}_inputs."
            )
        bad = np.argwhere(~np.isfinite(inputs))
        if len(bad):
            row, column = bad[0]
            raise InputError(
                f"{path} has {inputs[row, column]} in {split}_inputs at row {row}, column "
                f"{column}: expected finite numbers."
            )
    return parts


def _read_npy(
    archive: zipfile.ZipFile, name: str, dtype: str, most: int, *row: int
) -> NDArray[Any]:
    """An array [n, *row] with n from 1 to `most`; the sentences of InputError lack the file."""
    if f"{name}.npy" not in archive.namelist():
        found = ", ".join(archive.namelist()[:5]) or "nothing"
        raise InputError(f"holds no {name}: expected it as {name}.npy, found {found}.")
    info = archive.getinfo(f"{name}.npy")
    # What the other methods decompress to in one piece is not limited by what is asked for.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"holds {name} by compression method {info.compress_type}: expected 8.")
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):  # later ones are for headers that may have any length
            raise InputError(f"holds {name} in .npy version {version}: expected (1, 0).")
        shape, by_column, found_dtype = np.lib.format.read_array_header_1_0(stream)
        size = math.prod(shape) * found_dtype.itemsize
        if by_column or found_dtype != dtype or not shape or shape[1:] != row:
            raise InputError(
                f"holds {name} as {found_dtype} of shape {shape}: expected {dtype} of shape "
                f"({', '.join(map(str, ('n', *row)))}), row by row."
            )
        if not 1 <= shape[0] <= most:
            raise InputError(f"holds {shape[0]} {name}: expected 1 to {most}.")
        _check_size(f"(array {name})", info.file_size - stream.tell(), size)
        return np.frombuffer(stream.read(size), dtype).reshape(shape)


def _open(path: Path, expected: str) -> BinaryIO:
    """Opens a file that must exist, be a regular file, and not be empty."""
    try:
        if not path.is_file():
            defect = "is not a file" if path.exists() else "is missing"
            raise InputError(f"{path} {defect}: expected {expected}.")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty: expected {expected}.")
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): expected {expected}."
        ) from None


def _check_size(where: str, found: int, expected: int) -> None:
    if found != expected:
        defect = "is truncated" if found < expected else "is too long"
        raise InputError(f"{where} {defect}: expected {expected} bytes, found {found}.")


def _check_sha256(where: str, raw: bytes, expected: str) -> None:
    found = hashlib.sha256(raw).hexdigest()
    if found != expected:
        raise InputError(
            f"{where} is corrupted or another file: expected SHA-256 {expected}, found {found}."
        )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
