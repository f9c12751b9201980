"""The emulated cluster: its hosts, its links, what it leaves behind, and a training on it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from experiments import cluster
from experiments.cluster import __main__ as binary
from experiments.cluster import launcher, namespaces
from tests.binaries import read_metrics

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).parent.parent

SERVE = "import socket; s = socket.create_server(('', 7000)); print('ready', flush=True); "
SEND = SERVE + "c = s.accept()[0]; c.sendall(bytes(500_000)); c.close()"
COUNT = (
    "import socket, time; c = socket.create_connection(('server', 7000), 10); t = time.time()\n"
    "n = 0\nwhile part := c.recv(65536): n += len(part)\nprint(n, time.time() - t)"
)
LISTEN = SERVE + "\nwhile True: s.accept()"
CONNECT = "import socket; socket.create_connection(('server', 7000), 0.5)"


@pytest.fixture(scope="module")
def _namespaces() -> None:
    """Skips where the machine cannot make a cluster."""
    try:
        with cluster.Cluster(1, "10mbit"):
            pass
    except cluster.ClusterError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def mpi(_namespaces: None) -> cluster.Mpi:
    """Skips where there is no cluster or no mpiexec."""
    try:
        return cluster.find_mpi()
    except cluster.ClusterError as error:
        pytest.skip(str(error))


@contextlib.contextmanager
def serving(cluster_: cluster.Cluster, script: str) -> Iterator[None]:
    """Runs a Python script on the server; entered when it listens."""
    command = [*cluster_.enter("server"), sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        cluster_.kill("server")


def on(cluster_: cluster.Cluster, host: str, script: str) -> subprocess.CompletedProcess[str]:
    """Runs a Python script on a host."""
    command = [*cluster_.enter(host), sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def running(word: str) -> list[int]:
    """The processes that have this word in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and word.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.usefixtures("_namespaces")
def test_hosts_have_names_and_processes_of_their_own():
    with cluster.Cluster(2) as both:
        assert both.hosts == ("server", "worker1", "worker2")
        script = "import os, socket; print(os.uname().nodename, socket.gethostbyname('worker2'))"
        for host in both.hosts:
            assert on(both, host, script).stdout.split() == [host, both.address("worker2")]
        # As mpiexec on the server has something started by ssh.
        ssh = [*both.enter("server"), *both.enter_from_server("worker2"), "hostname"]
        assert subprocess.run(ssh, capture_output=True, check=True).stdout == b"worker2\n"

        with subprocess.Popen([*both.enter("worker1"), "sleep", "60"]):
            assert wait_until(lambda: both.processes("worker1"))
            assert both.processes("server") == both.processes("worker2") == []
            assert not both.is_quiet(0.0)
            both.kill("worker1")
            assert both.is_quiet(10.0)


@pytest.mark.usefixtures("_namespaces")
@pytest.mark.parametrize("rates", [(None, "10mbit"), ("10mbit", None)])
def test_no_message_is_faster_than_the_slower_of_two_links(rates):
    """Half a megabyte takes 0.4 s at 10 Mbit/s, whichever link has them."""
    with cluster.Cluster(1, *rates) as limited, serving(limited, SEND):
        received, seconds = on(limited, "worker1", COUNT).stdout.split()
    assert received == "500000"
    assert float(seconds) > 0.35


@pytest.mark.usefixtures("_namespaces")
def test_the_servers_link_has_a_rate_of_its_own():
    """Each way: at the host, and at its port of the bridge."""
    with cluster.Cluster(1, "10mbit", "30mbit") as two:

        def rates(where: list[str], device: str) -> list[str]:
            show = [*where, "tc", "qdisc", "show", "dev", device]
            shown = subprocess.run(show, capture_output=True, text=True, check=True).stdout
            return re.findall(r"\brate (\S+)", shown)

        bridge = two._enter(two._site_pid, user=not two._rooted)
        for host, rate in (("server", "30Mbit"), ("worker1", "10Mbit")):
            assert rates(two.enter(host), "eth0") == [rate]
            assert rates(bridge, f"to_{host}") == [rate]


@pytest.mark.parametrize(
    ("flags", "rates"),
    [
        ([], ("200mbit", "200mbit")),
        (["--rate=5mbit"], ("5mbit", "5mbit")),
        (["--rate=5mbit", "--server_rate=1gbit"], ("5mbit", "1gbit")),
        (["--rate=unlimited"], (None, None)),
        (["--rate=5mbit", "--server_rate=unlimited"], ("5mbit", None)),
        (["--rate=unlimited", "--server_rate=5mbit"], (None, "5mbit")),
    ],
)
def test_the_servers_link_is_like_the_others_by_default(monkeypatch, capsys, flags, rates):
    asked = []

    def enter(num_workers: int, *of: str | None) -> cluster.Cluster:
        asked.append((num_workers, *of))
        raise cluster.ClusterError("that is all.")

    monkeypatch.setattr(binary, "Cluster", enter)
    monkeypatch.setattr(launcher, "find_mpi", lambda mpiexec: None)
    assert binary.run(["cluster", "--num_workers=2", *flags, "--", "true"]) == 1
    assert asked == [(2, *rates)]


@pytest.mark.usefixtures("_namespaces")
def test_a_link_goes_down_and_up():
    with cluster.Cluster(2) as links, serving(links, LISTEN):
        assert on(links, "worker1", CONNECT).returncode == 0
        links.link_down("worker1")
        assert on(links, "worker1", CONNECT).returncode != 0
        assert on(links, "worker2", CONNECT).returncode == 0
        links.link_up("worker1")
        assert wait_until(lambda: on(links, "worker1", CONNECT).returncode == 0)


@pytest.mark.usefixtures("_namespaces")
def test_a_killed_owner_leaves_nothing_behind():
    word = f"61.{os.getpid()}"
    script = f"""
        import subprocess, time
        from experiments.cluster import Cluster
        with Cluster(1, "10mbit") as cluster:
            for host in cluster.hosts:
                subprocess.Popen([*cluster.enter(host), "sleep", "{word}"])
            print(cluster.folder, cluster._site_pid, end=" ")
            print(*(host.pid for host in cluster._host.values()), flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as owner:
        assert owner.stdout is not None
        folder, *first = owner.stdout.readline().split()
        assert len(first) == 3
        assert Path(folder).is_dir()
        # On each host `sleep` and, outside, what waits for it.
        assert wait_until(lambda: len(running(word)) >= 4)
        owner.kill()
    assert wait_until(lambda: not running(word))
    assert wait_until(lambda: not any(Path(f"/proc/{pid}/ns/net").exists() for pid in first))
    assert not Path(folder).exists()


def test_a_machine_without_the_tools_says_so(monkeypatch):
    monkeypatch.setattr(namespaces.shutil, "which", lambda name, path: None)
    with pytest.raises(cluster.ClusterError, match="needs the program 'ip'."):
        cluster.Cluster(1).__enter__()


@pytest.mark.usefixtures("_namespaces")
def test_a_rate_that_tc_refuses_leaves_nothing_behind():
    limited = cluster.Cluster(1, "fast")
    with pytest.raises(cluster.ClusterError, match="fast"):
        limited.__enter__()
    assert limited._holders == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--num_workers=0", "--", "true"], "--num_workers must be"),
        (["--num_workers=65", "--", "true"], "--num_workers must be"),
        (["--rate=fast", "--", "true"], "--rate must be"),
        (["--rate=0mbit", "--", "true"], "--rate must be"),
        (["--server_rate=fast", "--", "true"], "--server_rate must be"),
        (["--server_rate=0mbit", "--", "true"], "--server_rate must be"),
        (["--server_rate=", "--", "true"], "--server_rate must be"),
        (["--num_workers=2"], "give the program"),
        (["true"], "--name=value"),
        (["--speed=3", "--", "true"], "speed"),
    ],
)
def test_bad_flags_give_one_sentence(capsys, arguments, sentence):
    assert binary.run(["cluster", *arguments]) == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert "Traceback" not in printed


def test_programs_that_are_not_there_are_named(capsys):
    assert binary.run(["cluster", "--mpiexec=no_such_mpi", "--", "true"]) == 1
    assert "no_such_mpi" in capsys.readouterr().err
    with pytest.raises(cluster.ClusterError, match="neither Open MPI's nor MPICH's"):
        cluster.find_mpi("true")


def test_settings_of_the_user_stay():
    for name in (launcher.OPEN_MPI, launcher.MPICH):
        own = launcher.make_environment(name, {})
        theirs = dict.fromkeys(own, "x") | {"OTHER": "y"}
        kept = launcher.make_environment(name, theirs)
        forced = {"TMPDIR", "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"}
        assert {key for key, value in kept.items() if value != theirs[key]} <= forced


def test_exit_code_of_the_program_is_passed_on(mpi, capfd):
    command = ["cluster", "--num_workers=1", "--rate=unlimited", "--"]
    assert binary.run([*command, "sh", "-c", "hostname; exit 3"]) == 3
    assert binary.run([*command, "hostname"]) == 0
    printed = capfd.readouterr()
    assert sorted(printed.out.split()[-2:]) == ["server", "worker1"]
    assert f"on server: {mpi.mpiexec}" in printed.err


@pytest.mark.usefixtures("mpi")
def test_a_lost_host_is_no_success(monkeypatch):
    """Open MPI's mpiexec ends with code 0 there."""
    start, word = launcher.start, f"63.{os.getpid()}"

    def start_and_lose(cluster_, mpi, command):
        job = start(cluster_, mpi, command)
        for host in cluster_.hosts:
            assert wait_until(lambda host=host: {*running(word)} & {*cluster_.processes(host)})
        cluster_.kill("worker1")
        return job

    monkeypatch.setattr(launcher, "start", start_and_lose)
    monkeypatch.setattr(binary, "_SECONDS_TO_END", 0.2)
    assert binary.run(["cluster", "--num_workers=1", "--", "sleep", word]) != 0
    assert running(word) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.usefixtures("mpi")
def test_a_signal_ends_the_program_and_the_cluster(number, code):
    word = f"62.{os.getpid()}{number}"
    command = [sys.executable, "-m", "experiments.cluster", "--num_workers=1", "--", "sleep", word]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True) as job:
        # The binary, mpiexec with its `nsenter`, and `sleep` on both hosts.
        assert wait_until(lambda: len(running(word)) >= 5)
        job.send_signal(number)
        job.communicate(timeout=30)
        assert job.returncode == code
    assert running(word) == []


@pytest.mark.timeout(150)
@pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="there is no mpi4py.")
@pytest.mark.usefixtures("mpi")
def test_digits_train_on_three_hosts_while_a_link_goes_down_and_up(mpi, tmp_path):
    program = ["python", "-m", "experiments.train_distributed", "--dataset=digits"]
    # Half of a step with which the loss may rise for an epoch, to 0.4 once.
    flags = ["--num_epochs=5", "--inner_steps=300", "--lr=0.1", f"--out_dir={tmp_path}/run"]
    metrics = tmp_path / "run" / "metrics.csv"

    def epochs() -> int:
        return len(read_metrics(metrics.parent)) - 1 if metrics.exists() else -1

    with cluster.Cluster(3, "50mbit") as hosts, open(tmp_path / "log", "w+") as log:
        job = cluster.start(hosts, mpi, [*program, *flags], output=log)
        assert wait_until(lambda: epochs() >= 1 or job.process.poll() is not None, 90)
        hosts.link_down("worker2")
        # Its updates are missing, so that no epoch can end.
        time.sleep(1.0)
        during = epochs()
        time.sleep(1.0)
        assert epochs() == during < 5
        assert job.process.poll() is None
        hosts.link_up("worker2")
        code = job.process.wait(40)
        log.seek(0)
        assert code == 0, log.read()
        assert hosts.is_quiet(10.0)

    rows = read_metrics(metrics.parent)
    assert [row["updates"] for row in rows] == ["0", "300", "600", "900", "1200", "1500"]
    assert float(rows[0]["train_loss"]) > 2.0
    assert float(rows[-1]["train_loss"]) < 0.3
    # Two other workers' updates land while one computes; more while one is cut off.
    assert 1.0 < float(rows[-1]["mean_delay"]) < 3.0
    assert max(int(row["max_delay"]) for row in rows) > 2
