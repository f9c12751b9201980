"""Variance reduction and block updates for optax, over any pytree."""

from asvrg.transforms.blocks import RandomBlockState, random_block
from asvrg.transforms.correction import SvrgState, Telemetry, refresh, svrg
from asvrg.transforms.full_gradients import over_arrays, over_batches
from asvrg.transforms.trees import fill
from asvrg.transforms.variance import VarianceState, measure_variance

__all__ = [
    "RandomBlockState",
    "SvrgState",
    "Telemetry",
    "VarianceState",
    "fill",
    "measure_variance",
    "over_arrays",
    "over_batches",
    "random_block",
    "refresh",
    "svrg",
]
