"""What `asvrg.fit` takes and gives, as records."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from asvrg.estimators import Estimator
from asvrg.sampling import Sampler
from asvrg.types import Data, Driver, PyTree, Trace


class MakeDriver(Protocol):
    """What `asvrg.fit` takes as `driver`: `asvrg.simulate.driver`, say."""

    def __call__(
        self, estimator: Estimator, data: Data, sampler: Sampler, /, *, inner_steps: int
    ) -> Driver:
        """Makes a Driver for the epochs of one estimator."""


class Settings(NamedTuple):
    """What a run is made with, given or chosen.

    Attributes:
      num_samples: n.
      dim: d, the entries of params.
      batch_size: b.
      block_size: B; None if every update moves all of x.
      inner_steps: m.
      num_workers: K, the threads; 1 with the serial driver; None with a driver of the user's own.
      read_period: a thread's updates from one read of x to the next; None without threads.
      pretrain_epochs: those of SGD before SVRG begins.
    """

    num_samples: int
    dim: int
    batch_size: int
    block_size: int | None
    inner_steps: int
    num_workers: int | None
    read_period: int | None
    pretrain_epochs: int


class History(NamedTuple):
    """The numbers of all epochs that were kept, [epochs + 1] each, the first before training.

    epochs is `num_epochs`, or fewer if the run ended early. What the numbers are, and which of them
    are sums over the epochs so far, see `FitEpoch`.

    Attributes:
      epoch: int64 [epochs + 1], 0, 1, 2, ...
      loss: float64 [epochs + 1], f.
      error: float64 [epochs + 1], share of samples that are classified wrongly; nan without it.
      grad_norm_sq: float64 [epochs + 1], ||grad f||^2.
      lr: float64 [epochs + 1], eta.
      smoothness: float64 [epochs + 1], the estimate behind eta, not of L alone; nan if lr was
        given.
      halvings: int64 [epochs + 1], how often the epoch was done again with half the step.
      seconds: float64 [epochs + 1], a sum, of optimisation alone, thrown-away epochs included.
      updates: int64 [epochs + 1], a sum, of what was kept.
      grad_evals: int64 [epochs + 1], a sum, with thrown-away epochs and estimates.
      mean_delay: float64 [epochs + 1], of the epoch, in updates.
      max_delay: int64 [epochs + 1], of the epoch, in updates.
      variance_g: float64 [epochs + 1], of the mini-batch gradient; nan unless it was measured.
      variance_v: float64 [epochs + 1], of v.
      best_alpha: float64 [epochs + 1], with which that of v would have been smallest.
    """

    epoch: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    grad_norm_sq: np.ndarray
    lr: np.ndarray
    smoothness: np.ndarray
    halvings: np.ndarray
    seconds: np.ndarray
    updates: np.ndarray
    grad_evals: np.ndarray
    mean_delay: np.ndarray
    max_delay: np.ndarray
    variance_g: np.ndarray
    variance_v: np.ndarray
    best_alpha: np.ndarray


class FitEpoch(NamedTuple):
    """A run after an epoch; counts and seconds are sums over the epochs so far.

    What was thrown away has been computed all the same, and is in `seconds` and `grad_evals`.

    Attributes:
      epoch: epochs done; 0 before training.
      params: the parameters, in the structure and dtype that they were given in, as jax arrays.
      loss: f, over all samples.
      error: share of samples that `error` calls wrong, in [0, 1]; nan without it.
      grad_norm_sq: ||grad f||^2.
      lr: the step of this epoch; of epoch 0, that of the first. It is nan if there was none to
        choose, as the start met the tolerance.
      smoothness: the estimate that an automatic step comes from, of (1 - 1/b) L + L_max / b + tau
        L; nan if lr was given, or the Hessian is not finite.
      halvings: how often this epoch was thrown away and done again with half the step.
      seconds: wall-clock time of optimisation alone, with the estimates of the smoothness after the
        first: no compilation, no evaluation.
      updates: updates of x, of the epochs that were kept.
      grad_evals: component gradients computed, as the theory counts them; with an automatic step
        those of epochs that were thrown away are among them, and two for every product of the
        estimates with the Hessian of one f_i. So it begins with the first estimate.
      mean_delay: of the updates of this epoch, in updates; 0 in epoch 0.
      max_delay: the largest of them.
      variance_g: E ||g - grad f||^2 of the mini-batch gradient g, where this epoch ended; nan in
        epoch 0, and unless `measure_variance` is set.
      variance_v: the same of v, with the snapshot and the alpha of this epoch.
      best_alpha: with which that of v would have been smallest.
      trace: who computed which update from which x in this epoch; None in epoch 0, and if an
        earlier run did this epoch.
      history: the numbers of all epochs so far, this one included.
      settings: what the run is made with; the same in all epochs.
    """

    epoch: int
    params: PyTree
    loss: float
    error: float
    grad_norm_sq: float
    lr: float
    smoothness: float
    halvings: int
    seconds: float
    updates: int
    grad_evals: int
    mean_delay: float
    max_delay: int
    variance_g: float
    variance_v: float
    best_alpha: float
    trace: Trace | None
    history: History
    settings: Settings
