"""Runs a command as a process of its own, and hands signals on to it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments import launch

POLL_SECONDS = 0.2
SECONDS_TO_END = 60.0  # after a signal, for what the process keeps


def run(
    words: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    stop: launch.Stop,
    tick: Callable[[], None],
) -> None:
    """Runs a command to its end; what it prints is added to a file.

    Args:
      words: of the command.
      log: the file; its folder is there.
      environment: of the process.
      stop: what signals asked for; the first one is handed on, and waits for the process to end.
      tick: called several times a second.

    Raises:
      ChildProcessError: it ended with another code than 0.
      KeyboardInterrupt: a signal came.
    """
    with open(log, "ab") as output:
        process = subprocess.Popen(
            words,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes by way of `stop`
        )
        try:
            told = False
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
                if stop.received and not told:
                    told = True
                    process.send_signal(stop.received)
                tick()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_TO_END)
            finally:  # after one more signal, too
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            raise
    stop.heed()
    if process.returncode != 0:
        raise ChildProcessError(
            f"{shlex.join(words)} ended with code {process.returncode}; {log} says why."
        )
