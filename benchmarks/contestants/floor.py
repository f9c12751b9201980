"""What the machine allows: an iteration in C, the products alone, the memory accesses alone."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import measure
from benchmarks.contestants.c_floor import C
from benchmarks.measure import Problem, Result, Task

COPIED = 1 << 28  # bytes, more than caches hold


def product(problem: Problem, num_batches: int) -> tuple[Callable[[], object], int]:
    """The product of the first layer, for some mini-batches at once.

    Returns:
      A call, and for how many iterations it is enough.
    """
    inputs, hidden, _ = problem.setting.layer_sizes
    rng = np.random.default_rng(problem.setting.seed)
    rows = rng.random((num_batches * problem.setting.batch_size, inputs), np.float32)
    matrix = problem.x0[: inputs * hidden].reshape(inputs, hidden)
    result = np.empty((len(rows), hidden), np.float32)
    return lambda: np.matmul(rows, matrix, out=result), num_batches


def accesses(problem: Problem) -> tuple[Callable[[], object], int]:
    """Reads random mini-batches, and reads and writes random blocks of x, by numpy.

    Returns:
      A call, and for how many iterations it is enough.
    """
    setting, count = problem.setting, 256
    rng = np.random.default_rng(setting.seed)
    n, d = len(problem.labels), len(problem.x0)
    batches = rng.integers(n, size=(count, setting.batch_size))
    blocks = [rng.choice(d, setting.block_size, replace=False) for _ in range(count)]
    x, one = problem.x0.copy(), np.float32(1)

    def call() -> None:
        for batch, block in zip(batches, blocks, strict=True):
            problem.inputs[batch]
            x[block] += one

    return call, count


def large_copy() -> tuple[Callable[[], object], int]:
    """Copies what no cache holds.

    Returns:
      A call, and the bytes that it reads and writes.
    """
    source = np.ones(COPIED // 4, np.float32)
    target = np.empty_like(source)
    target[:] = source
    return lambda: np.copyto(target, source), 2 * COPIED


def seconds_of(call: Callable[[], object], least: float) -> float:
    """Mean seconds of a call, over at least so many seconds."""
    call()
    begin, calls = time.perf_counter(), 0
    while (taken := time.perf_counter() - begin) < least or not calls:
        call()
        calls += 1
    return taken / calls


def main() -> None:
    """Measures what the command line names, `TASK FOLDER`, and prints the Result."""
    task, folder = Task(*json.loads(sys.argv[1])), Path(sys.argv[2])
    if task.method == "c":
        measure.main(C)
        return
    imports_mb = measure.resident_mb("VmRSS")
    problem = measure.load(folder)
    least = problem.setting.rate_seconds
    us = gb_per_s = None
    if task.method == "copy":
        call, nbytes = large_copy()
        gb_per_s = nbytes / seconds_of(call, least) / 1e9
    else:
        call, count = {
            "sgemm_10": lambda: product(problem, 1),
            "sgemm_640": lambda: product(problem, 64),
            "memory": lambda: accesses(problem),
        }[task.method]()
        us = seconds_of(call, least) / count * 1e6
    state_mb = sum(array.nbytes for array in problem[1:]) / 1e6
    measure.report(Result(us, [], measure.resident_mb("VmHWM"), imports_mb, state_mb, gb_per_s))


if __name__ == "__main__":
    main()
