"""Files that orbax keeps, numbered as they came: whole or not at all, the last few of them.

Imported by who needs it when it is needed, as orbax takes half a second.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import orbax.checkpoint as ocp

FILE = "content"


def steps(folder: Path) -> list[int]:
    """The numbers of the files, rising; of a folder that is not there, none."""
    if not folder.is_dir():
        return []
    with _manager(folder, write=False, keep=None) as manager:
        return sorted(manager.all_steps())


def save(folder: Path, content: bytes, *, keep: int) -> None:
    """Adds a file after all others, of which the oldest go once it is there.

    Args:
      folder: of the files; made if it is not there.
      content: of the file.
      keep: files that stay, this one included.

    Raises:
      OSError: it cannot be written; the files before are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _manager(folder, write=True, keep=keep) as manager:
        manager.save(1 + max(manager.all_steps(), default=-1), args=_SaveArgs(content))


def load(folder: Path, step: int) -> bytes:
    """The content of a file.

    Args:
      folder: of the files.
      step: its number, one of `steps`.

    Returns:
      What `save` was given, unless the file was damaged since.

    Raises:
      Exception: the file cannot be read; orbax has errors of many kinds for that.
    """
    with _manager(folder, write=False, keep=None) as manager:
        content: bytes = manager.restore(step, args=_RestoreArgs())
    return content


class _Handler(ocp.CheckpointHandler):
    """Bytes in place of orbax's format of arrays.

    Of damaged arrays orbax prints tracebacks, and it does not see a flipped bit in them (0.12.8).
    """

    def save(self, directory: Path, args: _SaveArgs) -> None:
        (directory / FILE).write_bytes(args.content)

    def restore(self, directory: Path, args: _RestoreArgs) -> bytes:
        return (directory / FILE).read_bytes()


@ocp.args.register_with_handler(_Handler, for_save=True)
@dataclasses.dataclass
class _SaveArgs(ocp.args.CheckpointArgs):
    content: bytes


@ocp.args.register_with_handler(_Handler, for_restore=True)
@dataclasses.dataclass
class _RestoreArgs(ocp.args.CheckpointArgs):
    pass


def _manager(folder: Path, *, write: bool, keep: int | None) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=write,
        cleanup_tmp_directories=write,
        enable_async_checkpointing=False,
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)
