"""PyTorch's SGD and Adam in one process, and Hogwild, as its users write them.

Mini-batches are rows of one tensor, which costs less than a loader of batches.
"""

from __future__ import annotations

import torch

from benchmarks import measure
from benchmarks.contestants.hogwild import Hogwild
from benchmarks.contestants.torch_network import Network
from benchmarks.measure import Method, Problem, Task


class Plain:
    """An optimiser of torch.optim; see `measure.Method`."""

    def __init__(self, problem: Problem, task: Task) -> None:
        setting = problem.setting
        self._network = Network(problem)
        self._task, self._seed = task, setting.seed
        self.num_updates = setting.eval_every
        self.grad_evals = setting.batch_size * self.num_updates
        moments = 2 if task.method == "adam" else 0
        self.nbytes = self._network.nbytes + moments * self._network.flat.nbytes
        self.reset()
        self.advance()  # the first steps make buffers
        self.reset()

    def reset(self) -> None:
        """Goes back to x^0, with a new optimiser."""
        torch.manual_seed(self._seed)
        self._network.flat.copy_(self._network.x0)
        self._optimizer = self._network.optimizer(self._task.method, self._task.lr)

    def snapshot(self) -> None:
        """There is none."""

    def advance(self) -> None:
        """Updates of all of x."""
        for _ in range(self.num_updates):
            self._network.backward(self._network.mini_batch())
            self._optimizer.step()

    def loss(self) -> float:
        """The training loss."""
        return self._network.loss()

    def close(self) -> float:
        """There are no other processes."""
        return 0.0


def build(problem: Problem, task: Task) -> Method:
    """The method of a task."""
    torch.set_num_threads(1)
    return (Hogwild if task.method.startswith("hogwild") else Plain)(problem, task)


if __name__ == "__main__":
    measure.main(build)
