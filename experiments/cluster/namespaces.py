"""Hosts in namespaces of one machine, joined by a bridge with limited links."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

RATE = r"[1-9][0-9]*[kmg]bit"  # a bandwidth, as `tc` has it
MOST_WORKERS = 64

_TOOLS = ("ip", "tc", "unshare", "nsenter", "mount", "hostname", "sh", "cat", "rm", "sleep")
_SUBNET = "10.23.0"  # seen by nobody but the hosts
# Of the token bucket: three packets, far below a message, which shall not pass in one burst.
_BURST = "5kb"
# What a link queues before it drops: some messages of each worker on their way to the server.
_QUEUE = "4mb"
_SECONDS = 10.0  # for any one step of setting up or tearing down

# Options of unshare; nsenter knows the first ones.
_NAMESPACES = ("--net", "--uts", "--ipc", "--mount")
_PROCESSES = ("--pid", "--fork", "--kill-child", "--mount-proc")

# The first process of all: everything ends with it, after nobody holds its input any more.
_SITE = """
ip link add bridge type bridge && ip link set bridge up && echo ready && cat && rm -rf "$1"
"""
# A host's first process: it names the host, and ends with the site.
_HOST = """
hostname "$1" && mount --bind "$2" /etc/hosts &&
mount -t tmpfs -o mode=1777 tmpfs /dev/shm && ip link set lo up && echo ready && exec sleep infinity
"""


class ClusterError(RuntimeError):
    """The machine cannot do what the cluster needs; the text is one sentence."""


class _Host(NamedTuple):
    pid: int  # its first process, as this machine numbers it
    site_pid: int  # the same process, as the site numbers it


class Cluster:
    """Hosts `server`, `worker1`, ..., `workerK` on one machine, as a context manager.

    Every host has network, name, shared memory and (workers) processes of its own; the files are
    the machine's, as if on a network file system. Nothing has a name outside: all of it hangs on
    one process that ends with this one, even if this one is killed.

    Args:
      num_workers: K >= 1.
      rate: bandwidth of a worker's link, each way, as `tc` has it ("200mbit"), or None: no limit.
      server_rate: the same of the server's link.

    Raises:
      ClusterError: on entering, if the machine cannot make namespaces, bridges or limited links.
    """

    def __init__(
        self, num_workers: int, rate: str | None = None, server_rate: str | None = None
    ) -> None:
        self.hosts = ("server", *(f"worker{k}" for k in range(1, num_workers + 1)))
        self._rates = dict.fromkeys(self.hosts, rate) | {"server": server_rate}
        self._site_pid = 0  # as this machine numbers it
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._holders: list[subprocess.Popen[str]] = []  # the site's first
        self._host: dict[str, _Host] = {}
        self._rooted = os.geteuid() == 0

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def folder(self) -> Path:
        """A folder for the files of the cluster, deleted with it."""
        assert self._folder is not None
        return Path(self._folder.name)

    def address(self, host: str) -> str:
        """The IPv4 address of a host."""
        return f"{_SUBNET}.{self.hosts.index(host) + 1}"

    def enter(self, host: str) -> list[str]:
        """The words before a command that have it run on a host, from this process."""
        return self._enter(self._host[host].pid, user=not self._rooted)

    def enter_from_server(self, host: str) -> list[str]:
        """The same from a process on the server."""
        return self._enter(self._host[host].site_pid, user=False)

    def processes(self, host: str) -> list[int]:
        """The processes of a host, apart from its first, as this machine numbers them."""
        first = self._host[host].pid
        own = _namespaces(first)
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != first:
                with contextlib.suppress(OSError):
                    if _namespaces(int(entry.name)) == own:
                        found.append(int(entry.name))
        return sorted(found)

    def is_quiet(self, seconds: float) -> bool:
        """Whether all processes of all hosts end within this time, apart from their first ones."""
        until = time.monotonic() + seconds
        while any(self.processes(host) for host in self.hosts):
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def kill(self, host: str) -> None:
        """Kills every process of a host, as if its power had failed; the link stays up."""
        while processes := self.processes(host):
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def link_down(self, host: str) -> None:
        """Takes the link of a host down: what is sent meanwhile is lost."""
        self._in_site("ip", "link", "set", f"to_{host}", "down")

    def link_up(self, host: str) -> None:
        """Takes the link of a host up again."""
        self._in_site("ip", "link", "set", f"to_{host}", "up")

    def close(self) -> None:
        """Ends every process of the cluster, and with them its namespaces; repeatable."""
        for holder in self._holders:
            assert holder.stdin is not None
            holder.stdin.close()  # the site's first process ends, and the kernel ends all others
            try:
                holder.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                holder.kill()
                holder.wait()
            for stream in (holder.stdout, holder.stderr):
                if stream is not None:
                    stream.close()
        self._holders = []
        self._host = {}
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self) -> None:
        for tool in _TOOLS:
            if shutil.which(tool, path=_path()) is None:
                raise ClusterError(f"an emulated cluster needs the program {tool!r}.")
        self._folder = tempfile.TemporaryDirectory(
            prefix="asvrg_cluster_", ignore_cleanup_errors=True
        )
        names = self.folder / "hosts"
        lines = ["127.0.0.1 localhost", *(f"{self.address(host)} {host}" for host in self.hosts)]
        names.write_text("\n".join(lines) + "\n")
        user = [] if self._rooted else ["--user", "--map-root-user"]
        site = self._hold(
            [
                "unshare",
                *user,
                *_NAMESPACES,
                *_PROCESSES,
                "sh",
                "-c",
                _SITE,
                "sh",
                self._folder.name,
            ]
        )
        self._site_pid = _leaf(site.pid)
        for host in self.hosts:
            self._add(host, names)

    def _add(self, host: str, names: Path) -> None:
        """Starts a host and joins it to the bridge."""
        # The server starts the others' processes, as it were by ssh, and has to see them.
        own = _NAMESPACES if host == "server" else [*_NAMESPACES, *_PROCESSES]
        site = self._enter(self._site_pid, user=not self._rooted)
        holder = self._hold([*site, "unshare", *own, "sh", "-c", _HOST, "sh", host, str(names)])
        pid = _leaf(holder.pid)
        # Its number here, in the site, and (a worker) in its own namespace.
        numbers = re.search(r"^NSpid:\s+(.+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
        assert numbers is not None
        site_pid = numbers[1].split()[1]
        self._host[host] = _Host(pid, int(site_pid))

        port = f"to_{host}"
        self._in_site(
            "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", site_pid
        )
        self._in_site("ip", "link", "set", port, "master", "bridge", "up")
        _run([*self.enter(host), "ip", "address", "add", f"{self.address(host)}/24", "dev", "eth0"])
        _run([*self.enter(host), "ip", "link", "set", "eth0", "up"])
        rate = self._rates[host]
        if rate is not None:
            limit = ["root", "tbf", "rate", rate, "burst", _BURST, "limit", _QUEUE]
            self._in_site("tc", "qdisc", "add", "dev", port, *limit)
            _run([*self.enter(host), "tc", "qdisc", "add", "dev", "eth0", *limit])

    def _hold(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Starts the first process of a namespace, and waits until it says that all is set up."""
        holder = subprocess.Popen(
            command,
            env=os.environ | {"PATH": _path()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the job; the hosts end after it
        )
        self._holders.append(holder)
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            reason = _last_line(holder.stderr.read())
            raise ClusterError(f"this machine makes no namespaces: {reason}")
        return holder

    def _in_site(self, *command: str) -> None:
        _run([*self._enter(self._site_pid, user=not self._rooted), *command])

    def _enter(self, pid: int, *, user: bool) -> list[str]:
        users = ["--user", "--preserve-credentials"] if user else []
        where = [f"--target={pid}", *users, *_NAMESPACES, "--pid", f"--wd={os.getcwd()}"]
        return ["nsenter", *where, "--"]


def _path() -> str:
    """PATH, and where administrators' tools are, which the PATH of other users may lack."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command,
        env=os.environ | {"PATH": _path()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise ClusterError(f"this machine joins no namespaces: {_last_line(done.stderr)}")


def _last_line(text: str) -> str:
    return [*text.strip().splitlines()[-1:], "no reason given"][0]


def _namespaces(pid: int) -> tuple[str, str]:
    """Which network and which processes a process sees; what waits for it outside sees others."""
    return os.readlink(f"/proc/{pid}/ns/net"), os.readlink(f"/proc/{pid}/ns/pid")


def children(pid: int) -> list[int]:
    """The children of a process.

    Args:
      pid: of the process.

    Returns:
      Their numbers.
    """
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _leaf(pid: int) -> int:
    """The process at the end of a chain of single children."""
    while under := children(pid):
        pid = under[0]
    return pid
