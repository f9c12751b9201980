"""An iteration of Algorithm 1 by hand: its C code, and a snapshot by numpy."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import Problem, Setting, Task

COMPILER = "cc"

# Not -ffast-math: linked into a library it has the whole process flush small numbers to 0.
FLAGS = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-freciprocal-math",
    "-ffinite-math-only",
)
CHUNK = 1_000  # samples at once in passes over all of them
DRAWS = 8_192  # iterations that are drawn beforehand; then they repeat
SLACK = 16  # floats behind x that the C code may read


class Iterations:
    """The C code, compiled for one network."""

    def __init__(self, setting: Setting) -> None:
        inputs, hidden, classes = setting.layer_sizes
        sizes = {
            "INPUTS": inputs,
            "HIDDEN": hidden,
            "CLASSES": classes,
            "BATCH": setting.batch_size,
            "BLOCK": setting.block_size,
        }
        with tempfile.TemporaryDirectory(prefix="floor-") as folder:
            library = str(Path(folder) / "floor.so")
            source = str(Path(__file__).with_name("floor.c"))
            macros = [f"-D{name}={value}" for name, value in sizes.items()]
            command = [COMPILER, *FLAGS, "-shared", "-fPIC", *macros, source, "-o", library, "-lm"]
            subprocess.run(command, check=True)
            self._iterate = ctypes.CDLL(library).iterate
        self._l2 = setting.l2

    def run(
        self,
        x: np.ndarray,
        inputs: np.ndarray,
        labels: np.ndarray,
        snapshot: list[np.ndarray],
        batches: np.ndarray,
        blocks: np.ndarray,
        lr: float,
    ) -> None:
        """Does iterations in place.

        Args:
          x: float32 [d + SLACK], changed.
          inputs: float32 [n, p].
          labels: int32 [n].
          snapshot: float32 x_tilde [d], full gradient [d], hidden activations [n, hidden], and the
            deltas of both layers, [n, hidden] and [n, classes].
          batches: int32 [r, b].
          blocks: int32 [r, B], distinct in a row.
          lr: eta.
        """
        arrays = (inputs, labels, x, *snapshot, batches, blocks)
        for array in arrays:
            assert array.flags.c_contiguous
            assert array.dtype in (np.float32, np.int32)
        self._iterate(
            ctypes.c_int64(len(batches)),
            *(ctypes.c_void_p(array.ctypes.data) for array in arrays),
            ctypes.c_float(lr),
            ctypes.c_float(self._l2),
        )


class C:
    """Algorithm 1 by the C code, its draws outside of the clock; see `measure.Method`."""

    def __init__(self, problem: Problem, task: Task) -> None:
        self._problem, self._lr = problem, task.lr
        setting, self._x0 = problem.setting, problem.x0
        self._iterations = Iterations(setting)
        rng = np.random.default_rng(setting.seed)
        n, d = len(problem.labels), len(problem.x0)
        count = max(DRAWS, setting.inner_steps)
        self._batches = rng.integers(n, size=(count, setting.batch_size), dtype=np.int32)
        self._blocks = np.empty((count, setting.block_size), np.int32)
        for block in self._blocks:
            block[:] = rng.choice(d, setting.block_size, replace=False, shuffle=False)
        self._blocks.sort(axis=1)
        self.num_updates = setting.inner_steps
        self.grad_evals = n + 2 * setting.batch_size * setting.inner_steps
        self._x = np.zeros(d + SLACK, np.float32)
        self.reset()
        self.snapshot()
        held = (problem.inputs, problem.labels, self._x, *self._snapshot)
        self.nbytes = sum(array.nbytes for array in held)

    def reset(self) -> None:
        """Goes back to x^0."""
        self._x[: len(self._x0)] = self._x0
        self._place = 0

    def snapshot(self) -> None:
        """The full gradient and the cache at x."""
        self._snapshot = snapshot(self._problem, self._x[: len(self._x0)])

    def advance(self) -> None:
        """An epoch's updates."""
        count = self.num_updates
        if self._place + count > len(self._batches):
            self._place = 0
        rows = slice(self._place, self._place + count)
        self._place += count
        problem = self._problem
        batches, blocks = self._batches[rows], self._blocks[rows]
        self._iterations.run(
            self._x, problem.inputs, problem.labels, self._snapshot, batches, blocks, self._lr
        )

    def loss(self) -> float:
        """The training loss."""
        x = self._x[: len(self._x0)]
        total = 0.0
        for start in range(0, len(self._problem.labels), CHUNK):
            labels = self._problem.labels[start : start + CHUNK]
            logits = _forward(self._problem, x, start)[2]
            logits -= logits.max(axis=1, keepdims=True)
            total += float(np.log(np.exp(logits).sum(axis=1)).sum())
            total -= float(logits[np.arange(len(labels)), labels].sum())
        square = float(np.dot(x, x))
        return total / len(self._problem.labels) + self._problem.setting.l2 / 2 * square

    def close(self) -> float:
        """There are no other processes."""
        return 0.0


def snapshot(problem: Problem, x: np.ndarray) -> list[np.ndarray]:
    """What `Iterations.run` takes as its snapshot, at x [d]."""
    hidden, first, second = [], [], []
    sums = [np.zeros(matrix.shape, np.float32) for matrix in _matrices(problem.setting, x)]
    for start in range(0, len(problem.labels), CHUNK):
        inputs, units, logits = _forward(problem, x, start)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        labels = problem.labels[start : start + CHUNK]
        shares[np.arange(len(labels)), labels] -= 1
        back = (shares @ _matrices(problem.setting, x)[1][:-1].T) * (units > 0)
        for total, rows, deltas in zip(sums, (inputs, units), (back, shares), strict=True):
            total[:-1] += rows.T @ deltas
            total[-1] += deltas.sum(axis=0)
        hidden.append(units)
        first.append(back)
        second.append(shares)
    mean = np.concatenate([total.ravel() for total in sums]) / np.float32(len(problem.labels))
    full_grad = mean + np.float32(problem.setting.l2) * x
    return [x.copy(), full_grad, *map(np.concatenate, (hidden, first, second))]


def _forward(
    problem: Problem, x: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a chunk: the inputs, the hidden layer's activations, and the logits."""
    first, second = _matrices(problem.setting, x)
    inputs = problem.inputs[start : start + CHUNK]
    units = np.maximum(inputs @ first[:-1] + first[-1], 0)
    return inputs, units, units @ second[:-1] + second[-1]


def _matrices(setting: Setting, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inputs, hidden, classes = setting.layer_sizes
    first, second = np.split(x, [(inputs + 1) * hidden])
    return first.reshape(inputs + 1, hidden), second.reshape(hidden + 1, classes)
