"""PyTorch's Hogwild: processes that write to shared parameters without a lock."""

from __future__ import annotations

import multiprocessing
import threading
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

import torch

from benchmarks import measure
from benchmarks.contestants.torch_network import Network
from benchmarks.measure import Problem, Task

SNAPSHOT, ADVANCE, STOP = range(3)


class Shared(NamedTuple):
    """What the processes share.

    Attributes:
      network: its parameters are.
      sums: float32 [K, d], each process's share of the full gradient.
      command: int64, what to do next.
      peaks_mb: float64 [K], the most memory of each process.
      everyone: where the processes and their parent meet, before and after each command.
      workers: where the processes alone meet.
    """

    network: Network
    sums: torch.Tensor
    command: torch.Tensor
    peaks_mb: torch.Tensor
    everyone: Barrier
    workers: Barrier


class Hogwild:
    """SVRG or SGD by processes; see `measure.Method`."""

    def __init__(self, problem: Problem, task: Task) -> None:
        setting = problem.setting
        svrg = task.method == "hogwild_svrg"
        network = Network(problem)
        network.share()
        fork = multiprocessing.get_context("fork")
        self._shared = Shared(
            network,
            torch.zeros(task.workers, network.flat.numel()).share_memory_(),
            torch.zeros((), dtype=torch.int64).share_memory_(),
            torch.zeros(task.workers, dtype=torch.float64).share_memory_(),
            fork.Barrier(task.workers + 1),
            fork.Barrier(task.workers),
        )
        self.num_updates = setting.inner_steps if svrg else setting.eval_every
        self.grad_evals = setting.batch_size * self.num_updates
        if svrg:
            self.grad_evals = 2 * self.grad_evals + network.num_samples
        # SVRG keeps a snapshot of x and the full gradient there.
        self.nbytes = network.nbytes + (2 if svrg else 0) * network.flat.nbytes
        self._processes = [
            fork.Process(target=_work, args=(k, problem, task, self._shared), daemon=True)
            for k in range(task.workers)
        ]
        for process in self._processes:
            process.start()

    def reset(self) -> None:
        """Goes back to x^0, in the shared memory."""
        self._shared.network.flat.copy_(self._shared.network.x0)

    def snapshot(self) -> None:
        """Has each process compute its share of the full gradient; of SGD nothing."""
        self._tell(SNAPSHOT)

    def advance(self) -> None:
        """Has each process do its share of the updates."""
        self._tell(ADVANCE)

    def loss(self) -> float:
        """The training loss."""
        return self._shared.network.loss()

    def close(self) -> float:
        """Ends the processes; in the sum of their peaks a page that they share counts for each."""
        self._tell(STOP)
        for process in self._processes:
            process.join()
        return float(self._shared.peaks_mb.sum())

    def _tell(self, command: int) -> None:
        self._shared.command.fill_(command)
        self._shared.everyone.wait()
        self._shared.everyone.wait()


def _work(worker: int, problem: Problem, task: Task, shared: Shared) -> None:
    """A process: does what it is told from one meeting to the next."""
    torch.manual_seed(problem.setting.seed + worker)
    method = (_Svrg if task.method == "hogwild_svrg" else _Sgd)(worker, problem, task, shared)
    try:
        while True:
            shared.everyone.wait()
            command = int(shared.command)
            if command == SNAPSHOT:
                method.snapshot()
            elif command == ADVANCE:
                method.advance()
            else:
                shared.peaks_mb[worker] = measure.resident_mb("VmHWM")
            shared.everyone.wait()
            if command == STOP:
                return
    except threading.BrokenBarrierError:
        return  # another process failed, and says why
    except BaseException:
        shared.everyone.abort()  # nobody waits for a process that has ended
        shared.workers.abort()
        raise


class _Sgd:
    """An optimiser of the process's own on the shared parameters."""

    def __init__(self, worker: int, problem: Problem, task: Task, shared: Shared) -> None:
        self._network = shared.network
        self._share = len(range(worker, problem.setting.eval_every, task.workers))
        self._optimizer = self._network.optimizer("sgd", task.lr)

    def snapshot(self) -> None:
        """There is none."""

    def advance(self) -> None:
        """Updates of all of x."""
        for _ in range(self._share):
            self._network.backward(self._network.mini_batch())
            self._optimizer.step()


class _Svrg:
    """Two backward passes for each update, which is of a block of the shared parameters."""

    def __init__(self, worker: int, problem: Problem, task: Task, shared: Shared) -> None:
        self._setting, self._lr = problem.setting, task.lr
        self._shared, self._network, self._old = shared, shared.network, Network(problem)
        self._part = slice(worker, None, task.workers)
        self._share = len(range(self._setting.inner_steps)[self._part])
        self._sum = shared.sums[worker]
        self._full = torch.zeros_like(self._network.flat)

    def snapshot(self) -> None:
        """The parameters now, and the full gradient there."""
        old = self._old
        old.flat.copy_(self._network.flat)
        self._sum.zero_()
        for rows in old.chunks()[self._part]:
            old.backward(rows)
            self._sum += len(rows) * old.gradient()
        self._shared.workers.wait()
        self._full = self._shared.sums.sum(0) / old.num_samples + self._setting.l2 * old.flat

    def advance(self) -> None:
        """Updates; a coordinate that is drawn twice for a block is updated once."""
        network, old = self._network, self._old
        for _ in range(self._share):
            rows = network.mini_batch()
            block = torch.randint(network.flat.numel(), (self._setting.block_size,))
            network.backward(rows)
            old.backward(rows)
            v = network.gradient()[block] - old.gradient()[block] + self._full[block]
            v += self._setting.l2 * (network.flat[block] - old.flat[block])
            network.flat[block] -= self._lr * v
