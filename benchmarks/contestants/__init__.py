"""Who takes part, each with a process of its own; the modules hold what they run.

The steps are constant: those with the fewest updates to loss 0.2 on MNIST, of SVRG's 0.2, 0.5, 1,
2 and 5 (tried with the C code), SGD's 0.02, 0.05, 0.1, 0.2, 0.5 and 1, and Adam's 0.0003, 0.001,
0.003 and 0.01 (both tried with optax; --only and --lr repeat it). Contestants with the same method
have the same step.
"""

from __future__ import annotations

from typing import NamedTuple

SVRG_LR, SGD_LR, ADAM_LR = 0.5, 0.1, 0.001
C_FLOOR, TORCH_SVRG = "floor: iteration in C", "PyTorch Hogwild SVRG (1 process)"


class Contestant(NamedTuple):
    """Something to measure.

    Attributes:
      name: as printed.
      module: below benchmarks.contestants.
      method: of the module.
      workers: threads of asvrg, or processes of Hogwild.
      lr: eta; 0 for what takes no steps.
    """

    name: str
    module: str
    method: str
    workers: int
    lr: float


CONTESTANTS = (
    Contestant("asvrg exact (1 thread)", "ours", "exact", 1, SVRG_LR),
    Contestant("asvrg exact (2 threads)", "ours", "exact", 2, SVRG_LR),
    Contestant("asvrg stale (1 thread)", "ours", "stale", 1, SVRG_LR),
    Contestant("asvrg stale (2 threads)", "ours", "stale", 2, SVRG_LR),
    Contestant("asvrg exact, drawn beforehand", "ours", "exact_drawn", 1, SVRG_LR),
    Contestant("asvrg stale, drawn beforehand", "ours", "stale_drawn", 1, SVRG_LR),
    Contestant("asvrg simulator", "ours", "simulator", 1, SVRG_LR),
    Contestant(TORCH_SVRG, "torch_", "hogwild_svrg", 1, SVRG_LR),
    Contestant("PyTorch Hogwild SVRG (2 processes)", "torch_", "hogwild_svrg", 2, SVRG_LR),
    Contestant("PyTorch Hogwild SGD (1 process)", "torch_", "hogwild_sgd", 1, SGD_LR),
    Contestant("PyTorch Hogwild SGD (2 processes)", "torch_", "hogwild_sgd", 2, SGD_LR),
    Contestant("PyTorch SGD", "torch_", "sgd", 1, SGD_LR),
    Contestant("PyTorch Adam", "torch_", "adam", 1, ADAM_LR),
    Contestant("optax SGD", "optax_", "sgd", 1, SGD_LR),
    Contestant("optax Adam", "optax_", "adam", 1, ADAM_LR),
    Contestant(C_FLOOR, "floor", "c", 1, SVRG_LR),
    Contestant("floor: sgemm of one mini-batch", "floor", "sgemm_10", 1, 0.0),
    Contestant("floor: sgemm of 64 mini-batches", "floor", "sgemm_640", 1, 0.0),
    Contestant("floor: memory accesses by numpy", "floor", "memory", 1, 0.0),
    Contestant("floor: large copy", "floor", "copy", 1, 0.0),
)
