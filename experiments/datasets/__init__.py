"""The data sets as arrays: MNIST, Fashion-MNIST, CIFAR-10 and its features, and digits."""

from __future__ import annotations

from experiments.datasets.files import locate
from experiments.datasets.loading import Dataset, load
from experiments.datasets.sources import Source, read_sources

__all__ = ["Dataset", "Source", "load", "locate", "read_sources"]
