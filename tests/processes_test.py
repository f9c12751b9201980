"""Commands as processes of their own: how they end, and what becomes of signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments import launch
from experiments.paper import processes

pytestmark = pytest.mark.timeout(60)
ENVIRONMENT = {"PATH": os.environ.get("PATH", "/usr/bin:/bin")}


@pytest.fixture(autouse=True)
def _polled_often(monkeypatch):
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.01)


def nothing() -> None:
    pass


def waiting_stop() -> launch.Stop:
    """As it is where a study is under way: the first signal waits."""
    stop = launch.Stop()
    stop.waits = True
    return stop


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def run(
    script: str,
    log: Path,
    stop: launch.Stop | None = None,
    tick: Callable[[], None] = nothing,
    environment: dict[str, str] = ENVIRONMENT,
) -> None:
    processes.run(shell(script), log, environment, stop or waiting_stop(), tick)


def running(word: str) -> list[int]:
    """The processes that have this word in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and word.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def when_ready(log: Path, action: Callable[[], None]) -> Callable[[], None]:
    """A tick that acts once, when the command has printed what it prints first."""
    done: list[bool] = []

    def tick() -> None:
        if not done and "ready" in log.read_text():
            done.append(True)
            action()

    return tick


def test_what_it_prints_is_added_to_the_log(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    run("echo one; echo two >&2", log)
    run("echo three", log)
    assert log.read_text() == "before\none\ntwo\nthree\n"


def test_it_has_the_given_environment_and_no_input(tmp_path):
    log = tmp_path / "log.txt"
    run('echo "$OWN $HOME-"; cat; echo end', log, environment=ENVIRONMENT | {"OWN": "x"})
    assert log.read_text() == "x -\nend\n"


def test_it_ticks_while_the_command_runs(tmp_path):
    """Until it ends, which the tick itself brings about."""
    ticks = []

    def tick() -> None:
        ticks.append(time.monotonic())
        if len(ticks) == 5:
            (tmp_path / "go").touch()

    script = f"while [ ! -e '{tmp_path}/go' ]; do sleep 0.01; done"
    run(script, tmp_path / "log.txt", tick=tick)
    assert len(ticks) >= 5


@pytest.mark.parametrize(
    ("script", "code"), [("echo why; exit 3", "3"), ("echo why; kill -9 $$", "-9")]
)
def test_another_code_than_0_is_an_error_that_names_the_log(tmp_path, script, code):
    log = tmp_path / "log.txt"
    with pytest.raises(ChildProcessError) as caught:
        run(script, log)
    said = launch.sentence(caught.value)  # as the binaries tell it
    assert said.endswith(f"ended with code {code}; {log} says why.")
    assert said.startswith("sh -c 'echo why;")
    assert log.read_text() == "why\n"


def test_a_command_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match="no_such_program"):
        processes.run(["no_such_program"], tmp_path / "log", {}, waiting_stop(), nothing)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handed_on_once_and_waits_for_the_end(tmp_path, number):
    """The command takes its time, and ends as if all were well."""
    log, stop = tmp_path / "log.txt", waiting_stop()
    name = signal.Signals(number).name.removeprefix("SIG")
    # By Python: a shell that was started with SIGINT ignored could not set a trap for it.
    script = f"""
import signal, sys, time
got = []
signal.signal(signal.{signal.Signals(number).name}, lambda number, frame: got.append(number))
print("ready", flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.1)
print("{name}", len(got), flush=True)
"""
    tick = when_ready(log, lambda: stop(number, None))
    with pytest.raises(launch.Stopped) as caught:
        processes.run([sys.executable, "-c", script], log, ENVIRONMENT, stop, tick)
    assert caught.value.number == number
    assert log.read_text() == f"ready\n{name} 1\n"


def test_a_signal_that_came_before_is_handed_on_too(tmp_path):
    log, stop = tmp_path / "log.txt", waiting_stop()
    stop(signal.SIGTERM, None)
    with pytest.raises(launch.Stopped):
        run("sleep 50", log, stop)


def test_a_command_that_ignores_signals_is_killed_after_the_second_one(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "SECONDS_TO_END", 0.2)
    log, stop, word = tmp_path / "log.txt", waiting_stop(), f"64.{os.getpid()}"
    tell, ticks = when_ready(log, lambda: stop(signal.SIGTERM, None)), []

    def tick() -> None:
        tell()
        ticks.append(stop.received)
        # The first one has ended nothing: the shell and the process that it has started go on.
        if sum(map(bool, ticks)) > 5 and len(running(word)) == 2:
            stop(signal.SIGINT, None)

    with pytest.raises(launch.Stopped) as caught:
        run(f"trap '' TERM; echo ready; sleep {word}; exit 0", log, stop, tick)
    assert caught.value.number == signal.SIGINT
    until = time.monotonic() + 20
    while running(word) and time.monotonic() < until:
        time.sleep(0.01)
    assert running(word) == []


def test_an_error_of_the_caller_ends_the_command_too(tmp_path):
    log, word = tmp_path / "log.txt", f"65.{os.getpid()}"

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(f"echo ready; exec sleep {word}", log, tick=when_ready(log, fail))
    assert running(word) == []


def test_ctrl_c_of_the_terminal_reaches_the_command_by_the_caller_alone(tmp_path):
    """It goes to a group of processes, of which the command is none."""
    log = tmp_path / "log.txt"
    run(f"{sys.executable} -c 'import os; print(os.getpgrp(), os.getsid(0))'", log)
    group, session = map(int, log.read_text().split())
    assert group == session
    assert group != os.getpgrp()
