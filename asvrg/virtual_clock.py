"""A virtual clock: how long asynchronous workers take, and which x they read, without running them.

The model, for a star of K workers around whatever owns x (a server, or a lock on shared memory):

- A worker reads x, computes the r updates of a window, and delivers them; then it reads x again.
- The owner lands windows one at a time, first come, first served; each takes it its service time.
- With a Network, x and the updates travel: first over the server's link, which carries one message
  at a time each way, then for the latency. A link that is shared fairly has the same throughput.
- With fewer cores than there is work, workers wait for a core in turn, whoever may land first. Who
  is on a core goes on from window to window, until it must wait to land or its time slice is over;
  that may be in the middle of a window, which then lacks all that lands before it goes on.
- m updates are shared out; who finds none left stops, as in the drivers. So an epoch has an end
  at which workers wait for the last one.

Deaths, other programs on the cores, and a `max_delay` gate are not in the model.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from asvrg.durations import Duration
from asvrg.errors import (
    INT32,
    INT64,
    InputError,
    check_count,
    check_kind,
    check_real,
    check_reals,
    check_switch,
)
from asvrg.types import Array, Times, Trace

_CHUNK = 4_096  # durations drawn at once
_SLICES = 1e6  # time slices of a window, at most


class Network(NamedTuple):
    """The way between the server and its workers.

    Attributes:
      latency: of a message, in seconds, one way.
      bandwidth: of a link, in bytes/s each way; math.inf for messages that take no time.
      bytes_up: of a message to the server, for instance 4 d.
      bytes_down: of a message to a worker.
      shared: whether all messages pass the server's one link, one at a time each way; otherwise
        each worker has a link of its own to the server, and nobody waits.
    """

    latency: float = 0.0
    bandwidth: float = math.inf
    bytes_up: int = 0
    bytes_down: int = 0
    shared: bool = True

    @property
    def up(self) -> float:
        """Seconds for which a message to the server occupies a link."""
        return self.bytes_up / self.bandwidth

    @property
    def down(self) -> float:
        """Seconds for which a message to a worker occupies a link."""
        return self.bytes_down / self.bandwidth


class Cluster(NamedTuple):
    """What a worker and the owner of x need for a window.

    Attributes:
      compute: of a worker, from the read of x to the last of the window's updates.
      service: of the owner, in which no other window lands. What else only one worker can do at a
        time belongs here, such as Python code between two jitted calls of a thread.
      network: None for shared memory.
      updates_per_read: r; with more than one a worker sees its own updates of the window.
      cores: that workers share on one machine, for computing and for landing; None for enough.
      time_slice: seconds after which a worker leaves its core to one that waits. By default the
        4 ms between two ticks of a Linux kernel with 250 of them in a second. Every slice is an
        event.
    """

    compute: Duration
    service: Duration
    network: Network | None = None
    updates_per_read: int = 1
    cores: int | None = None
    time_slice: float = 0.004


def event_driven(
    num_updates: int,
    num_workers: int,
    cluster: Cluster,
    *,
    seed: int,
    slowness: Array | None = None,
) -> Trace:
    """The Trace that a cluster on paper leaves: convergence and wall-clock can be had from it.

    A window of fewer than r updates, the last that is shared out, takes its share of the times.

    Args:
      num_updates: m.
      num_workers: K.
      cluster: the times; see the module for the model.
      seed: of the draws, at least 0.
      slowness: float [K] above 0, by which a worker's computing takes longer; None for 1.

    Returns:
      A Trace of m updates with `times`: `read` when x was read or left the server, `computed` when
      the window was ready to land or had arrived, `landed` when it had landed. `sees_own` where
      r > 1.

    Raises:
      InputError: an argument is out of its range.

    >>> from asvrg.durations import constant
    >>> trace = event_driven(6, 2, Cluster(constant(3.0), constant(1.0)), seed=0)
    >>> trace.worker.tolist(), trace.read_version.tolist(), trace.times.landed.tolist()
    ([0, 1, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4], [4.0, 5.0, 8.0, 9.0, 12.0, 13.0])
    """
    check_count("num_updates", num_updates, limit=INT32)
    check_count("num_workers", num_workers, limit=INT32)
    check_count("seed", seed, least=0)
    _check(cluster)
    slow = [1.0] * num_workers if slowness is None else _check_slowness(slowness, num_workers)
    r = cluster.updates_per_read
    short = num_updates % r  # updates of the window that is shared out last; 0 for r
    num_windows = -(-num_updates // r)
    jobs = _jobs(cluster, num_windows, short / r or 1.0, seed)
    if cluster.cores is None:
        landings = _on_a_star(slow, jobs, cluster.network or Network())
    else:
        crowded = num_workers > cluster.cores
        time_slice = cluster.time_slice if crowded else math.inf
        _check_slices(cluster, max(slow))
        landings = _on_one_machine(slow, jobs, cluster.cores, time_slice)
    log = np.fromiter(landings, _LOG, num_windows)
    counts = np.where(log["window"] == num_windows - 1, short or r, r)
    landed_before = np.concatenate([[0], np.cumsum(counts)])
    return Trace(
        np.repeat(log["worker"].astype(np.int32), counts),
        np.repeat(landed_before[log["version"]].astype(np.int32), counts),
        sees_own=r > 1,
        times=Times(*(np.repeat(log[name], counts) for name in Times._fields)),
    )


def cycle(cluster: Cluster) -> float:
    """Seconds of a window, on average, of a worker that never waits.

    Args:
      cluster: the times.

    Returns:
      Seconds from one read of x to the next.

    Raises:
      InputError: an entry of the cluster is out of its range.

    >>> from asvrg.durations import constant
    >>> cycle(Cluster(constant(3.0), constant(1.0)))
    4.0
    """
    _check(cluster)
    way = cluster.network or Network()
    return cluster.compute.mean + cluster.service.mean + 2 * way.latency + way.up + way.down


def saturation(cluster: Cluster) -> float:
    """K*, the workers from which on the owner of x, or its link, is what limits the speed.

    K* = cycle / (the longest of the times for which a window occupies what all workers share).
    With constant times K workers are min(K, K*) times as fast as one, and delays are K - 1 windows
    on either side of K*: beyond it, more workers wait and read older x, and nothing else. Where
    times vary, the corner is round: at K* the owner idles whenever by chance nobody has arrived.
    Cores are not looked at.

    Args:
      cluster: the times.

    Returns:
      K*; math.inf if nothing is shared.

    Raises:
      InputError: an entry of the cluster is out of its range.

    >>> from asvrg.durations import constant
    >>> saturation(Cluster(constant(3.0), constant(1.0)))
    4.0

    Source: the saturation point of asymptotic bounds, as in Denning and Buzen (1978), The
    operational analysis of queueing network models.
    """
    seconds = cycle(cluster)
    way = cluster.network or Network()
    shared = [cluster.service.mean] + ([way.up, way.down] if way.shared else [])
    return seconds / max(shared) if max(shared) else math.inf


def updates_per_second(trace: Trace) -> float:
    """The speed in the middle half of a trace, without its beginning and its end.

    Args:
      trace: of m >= 8 updates, with `times`.

    Returns:
      Updates landed in a second.

    Raises:
      InputError: the trace is too short, or has no times.

    >>> from asvrg.durations import constant
    >>> updates_per_second(event_driven(80, 2, Cluster(constant(3.0), constant(1.0)), seed=0))
    0.5
    """
    landed = _landed("trace", trace)
    first, last = len(landed) // 4, 3 * len(landed) // 4
    if len(landed) < 8 or landed[last] <= landed[first]:
        raise InputError(
            f"trace must hold at least 8 updates that take time, got {len(landed)} of them."
        )
    # Windows land as a whole: count from the end of one to the end of another.
    count = np.searchsorted(landed, landed[[first, last]], side="right")
    return float((count[1] - count[0]) / (landed[last] - landed[first]))


def time_speedup(serial: Trace, parallel: Trace) -> float:
    """Equation (22) for equally many updates: how many times sooner the parallel run is done.

    That is the whole story where staleness costs no additional updates; else compare the times at
    which the replayed runs reach the same loss.

    Args:
      serial: of m updates, with `times`.
      parallel: the same.

    Returns:
      Running time of the serial run / running time of the parallel one.

    Raises:
      InputError: a trace has no times, or the two differ in length.

    >>> from asvrg.durations import constant
    >>> cluster = Cluster(constant(3.0), constant(0.0))
    >>> time_speedup(*(event_driven(60, k, cluster, seed=0) for k in (1, 5)))
    5.0

    Source: Huo and Huang (2016), Equation (22).
    """
    one, other = _landed("serial", serial), _landed("parallel", parallel)
    if len(one) != len(other) or not len(one):
        raise InputError(
            "serial and parallel must hold equally many updates, at least one, got "
            f"{len(one)} and {len(other)}."
        )
    return float(one[-1] / other[-1]) if other[-1] else math.inf


def _landed(name: str, trace: Trace) -> np.ndarray:
    check_kind(name, trace, Trace)
    if trace.times is None:
        raise InputError(f"{name} must have times, got None: it was made without a clock.")
    times = check_kind(f"{name}.times", trace.times, Times)
    return check_reals(f"{name}.times.landed", times.landed)


def _check(cluster: Cluster) -> None:
    check_kind("cluster", cluster, Cluster)
    check_real("compute.mean", check_kind("compute", cluster.compute, Duration).mean)
    check_real("service.mean", check_kind("service", cluster.service, Duration).mean)
    check_count("updates_per_read", cluster.updates_per_read, limit=INT32)
    if (network := cluster.network) is not None:
        check_kind("network", network, Network)
        check_real("latency", network.latency)
        if not isinstance(network.bandwidth, float) or network.bandwidth != math.inf:
            check_real("bandwidth", network.bandwidth, above=True)
        check_count("bytes_up", network.bytes_up, least=0, limit=INT64)
        check_count("bytes_down", network.bytes_down, least=0, limit=INT64)
        check_switch("shared", network.shared)
    check_real("time_slice", cluster.time_slice, above=True)
    if cluster.cores is not None:
        check_count("cores", cluster.cores)
        if network is not None:
            raise InputError(
                "cores must be None with a network: they are those of one machine, got "
                f"{cluster.cores}."
            )


def _check_slices(cluster: Cluster, slowest: float) -> None:
    """Raises InputError where a window has so many time slices that it would take for ever."""
    longest = slowest * cluster.compute.mean + cluster.service.mean
    if longest > _SLICES * cluster.time_slice:
        raise InputError(
            f"time_slice must be at least {longest / _SLICES:g} s, a millionth of a window, got "
            f"{cluster.time_slice!r}."
        )


def _check_slowness(slowness: Array, num_workers: int) -> list[float]:
    values = check_reals("every entry of slowness", slowness, above=True)
    if values.shape != (num_workers,):
        raise InputError(
            f"slowness must be an array [{num_workers}] of finite numbers above 0, got shape "
            f"{values.shape}."
        )
    return list(values.tolist())


class _Job(NamedTuple):
    """A window as it is shared out: its number, and the seconds of computing and of landing it."""

    window: int
    compute: float
    service: float


# What happened to a window; `version` counts the windows that had landed when x was read.
_LOG = np.dtype(
    [(name, np.int64) for name in ("window", "worker", "version")]
    + [(name, np.float64) for name in Times._fields]
)
_Entry = tuple[int, int, int, float, float, float]


def _jobs(cluster: Cluster, num_windows: int, last: float, seed: int) -> Iterator[_Job]:
    """The windows in the order in which workers take them; the last one takes a share `last`."""
    # A generator for each, so that another way of computing leaves the service times as they were.
    rngs = [np.random.default_rng([seed, which]) for which in range(2)]
    compute = _draws("compute", cluster.compute, rngs[0])
    service = _draws("service", cluster.service, rngs[1])
    yield from map(_Job, range(num_windows - 1), compute, service)
    yield _Job(num_windows - 1, last * next(compute), last * next(service))


def _draws(name: str, duration: Duration, rng: np.random.Generator) -> Iterator[float]:
    while True:
        seconds = np.asarray(duration.draw(rng, _CHUNK))
        if seconds.shape != (_CHUNK,) or seconds.dtype.kind not in "iuf":
            raise InputError(
                f"{name} must draw as many numbers as it is asked for, got {seconds.dtype} of "
                f"shape {seconds.shape} for {_CHUNK}."
            )
        if not np.all((seconds >= 0) & (seconds < math.inf)):
            raise InputError(f"{name} must draw finite numbers of at least 0, got another.")
        yield from seconds.tolist()


def _on_a_star(slow: list[float], jobs: Iterator[_Job], way: Network) -> Iterator[_Entry]:
    """One event for each window: link, server and link serve in the order of arrival.

    So the whole way of a window is known when it begins, and windows leave the heap in the order in
    which they land.
    """
    up, down, latency, shared = way.up, way.down, way.latency, way.shared
    up_free = server_free = down_free = 0.0
    heap: list[tuple[float, int, _Job]] = []  # when it reaches the server's link, and who sent it
    version, read = [0] * len(slow), [0.0] * len(slow)
    for k, job in zip(range(len(slow)), jobs, strict=False):
        down_free = down_free + down if shared else down
        heap.append((down_free + latency + job.compute * slow[k] + latency, k, job))
    heapq.heapify(heap)
    num_landed = 0
    while heap:
        arrival, k, job = heap[0]
        if shared and arrival < up_free:
            arrival = up_free
        arrival = up_free = arrival + up
        server_free = (server_free if server_free > arrival else arrival) + job.service
        yield job.window, k, version[k], read[k], arrival, server_free
        num_landed += 1
        following = next(jobs, None)
        if following is None:
            heapq.heappop(heap)
            continue
        version[k], read[k] = num_landed, server_free
        sent = down_free if shared and down_free > server_free else server_free
        sent = down_free = sent + down
        arrival = sent + latency + following.compute * slow[k] + latency
        heapq.heapreplace(heap, (arrival, k, following))


def _on_one_machine(
    slow: list[float], jobs: Iterator[_Job], cores: int, time_slice: float
) -> Iterator[_Entry]:
    """A worker on a core stays there until it must wait, or its time is up and another is ready."""
    current = dict(zip(range(len(slow)), jobs, strict=False))
    ready, waiting = collections.deque(current), collections.deque[int]()  # for a core, to land
    left = {k: job.compute * slow[k] for k, job in current.items()}  # of computing, or of landing
    version, read, computed = [0] * len(slow), [0.0] * len(slow), [0.0] * len(slow)
    end, slice_end = [0.0] * len(slow), [0.0] * len(slow)
    heap: list[tuple[float, int, int]] = []  # end of work or slice, order among equals, worker
    order = itertools.count()
    now, landing, num_landed = 0.0, -1, 0  # landing: who may land, on a core or not

    def work(k: int) -> None:
        end[k] = now + left[k]
        heapq.heappush(heap, (min(end[k], slice_end[k]), next(order), k))

    while current:
        while ready and len(heap) < cores:
            k = ready.popleft()
            slice_end[k] = now + time_slice
            work(k)
        now, _, k = heapq.heappop(heap)
        if now < end[k]:  # the slice is over
            left[k] = end[k] - now
            if ready:
                ready.append(k)
            else:
                slice_end[k] = now + time_slice
                heapq.heappush(heap, (min(end[k], slice_end[k]), next(order), k))
        elif k != landing:
            computed[k] = now
            left[k] = current[k].service
            if landing < 0:
                landing = k
                work(k)
            else:
                waiting.append(k)
        else:
            yield current[k].window, k, version[k], read[k], computed[k], now
            num_landed += 1
            landing = waiting.popleft() if waiting else -1
            if landing >= 0:
                ready.appendleft(landing)
            following = next(jobs, None)
            if following is None:
                del current[k]
            else:
                current[k], version[k], read[k] = following, num_landed, now
                left[k] = following.compute * slow[k]
                work(k)
