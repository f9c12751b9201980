"""Many lives of one command: a process that has imported everything forks one after the other.

To start Python with jax takes seconds, a fork some milliseconds; jax has started no thread by then.

    python -m tests.lives MODULE < commands

Each line of the standard input has, in JSON, seconds and a list of arguments. The answer is a line
with the status of the child that ran the module's `main` with them, and was killed after that time.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent


class Zygote:
    """The process that forks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Of a process that runs this module."""
        self._process = process

    def live(self, *arguments: str, seconds: float = 60.0) -> int:
        """Begins a life, and kills it after some seconds if it has not ended by itself.

        Returns:
          Its exit code, or less than 0: the signal that ended it.
        """
        self._ask([seconds, arguments])
        return os.waitstatus_to_exitcode(self._answer())

    def _ask(self, question: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextlib.contextmanager
def lives(module: str, errors: Path) -> Iterator[Zygote]:
    """A Zygote for a binary; what its children print goes to a file."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.lives", module]
    with (
        open(errors, "w") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            yield Zygote(process)
        finally:
            process.kill()


def _imported(module: str) -> ModuleType:
    """Everything that a run imports when it needs it, without one thread started."""
    binary = importlib.import_module(module)
    for each in (
        "asvrg.checkpoints.orbax_files",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
    ):
        importlib.import_module(each)
    importlib.import_module("sklearn.datasets")
    assert len(os.listdir("/proc/self/task")) == 1
    return binary


def _fork(binary: ModuleType, arguments: list[str]) -> int:
    from experiments import launch

    pid = os.fork()
    if pid:
        return pid
    os.dup2(2, 1)
    code = 1
    try:
        code = launch.run(binary.main, binary.define_flags, ["binary", *arguments])
    except BaseException:  # noqa: BLE001 - the child must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _serve(module: str) -> None:
    binary = _imported(module)
    for line in sys.stdin:
        seconds, arguments = json.loads(line)
        pid = _fork(binary, arguments)
        # A child of which nobody knows yet that it has ended keeps its pid.
        if not select.select([ended := os.pidfd_open(pid)], [], [], seconds)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(ended)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
