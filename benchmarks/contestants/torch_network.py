"""The network in PyTorch, and what all of its contestants compute with it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import vector_to_parameters

from benchmarks.measure import Problem

CHUNK = 1_000  # samples at once in passes over all of them


class Network:
    """A model whose parameters are views of one vector.

    Attributes:
      flat: x, float32 [d], in PyTorch's order.
      x0: where it starts.
      num_samples: n.
    """

    def __init__(self, problem: Problem) -> None:
        self._setting = problem.setting
        inputs, hidden, classes = self._setting.layer_sizes
        self.model = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        self.x0 = torch.from_numpy(_in_order(problem))
        self.flat = self.x0.clone()
        vector_to_parameters(self.flat, self.model.parameters())
        self._inputs = torch.from_numpy(problem.inputs)
        self._labels = torch.from_numpy(problem.labels).long()
        self.num_samples = len(self._labels)

    @property
    def nbytes(self) -> int:
        """Of data and parameters."""
        return sum(tensor.nbytes for tensor in (self._inputs, self._labels, self.flat))

    def share(self) -> None:
        """Puts the parameters where other processes find them."""
        self.flat.share_memory_()
        vector_to_parameters(self.flat, self.model.parameters())

    def optimizer(self, method: str, lr: float) -> torch.optim.Optimizer:
        """SGD or Adam on the parameters, with the l2 term."""
        kind = torch.optim.Adam if method == "adam" else torch.optim.SGD
        return kind(self.model.parameters(), lr=lr, weight_decay=self._setting.l2)

    def mini_batch(self) -> torch.Tensor:
        """The numbers of b samples."""
        return torch.randint(self.num_samples, (self._setting.batch_size,))

    def chunks(self) -> tuple[torch.Tensor, ...]:
        """The numbers of all samples."""
        return torch.arange(self.num_samples).split(CHUNK)

    def backward(self, rows: torch.Tensor) -> None:
        """The mean gradient over some samples, without the l2 term."""
        self.model.zero_grad()
        functional.cross_entropy(self.model(self._inputs[rows]), self._labels[rows]).backward()

    def gradient(self) -> torch.Tensor:
        """What `backward` computed, [d]."""
        return torch.cat([p.grad.view(-1) for p in self.model.parameters() if p.grad is not None])

    @torch.no_grad()
    def loss(self) -> float:
        """The training loss, the l2 term included."""
        total = 0.0
        for rows in self.chunks():
            outputs = self.model(self._inputs[rows])
            total += functional.cross_entropy(outputs, self._labels[rows], reduction="sum").item()
        square = self.flat.square().sum().item()
        return total / self.num_samples + self._setting.l2 / 2 * square


def _in_order(problem: Problem) -> np.ndarray:
    """x^0 with the weights of each layer transposed, before its biases."""
    pieces, start = [], 0
    inputs, hidden, classes = problem.setting.layer_sizes
    for rows, columns in ((inputs, hidden), (hidden, classes)):
        stop = start + (rows + 1) * columns
        matrix = problem.x0[start:stop].reshape(rows + 1, columns)
        pieces += [matrix[:-1].T.ravel(), matrix[-1]]
        start = stop
    return np.concatenate(pieces)
