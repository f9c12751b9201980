"""The step that `asvrg.fit` chooses where none is given, and when an epoch is done again with half.

The step is 1 / smoothness. It is not proved to be safe: a Hessian says nothing about points far
from its own, and deep networks become steeper as they learn. So a run begins with a part of it, it
is estimated again as the run goes on, and what an epoch did to the loss is looked at.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from asvrg import objectives
from asvrg.errors import InputError
from asvrg.objectives import Metrics
from asvrg.theory import smoothness
from asvrg.types import Array, Data, Objective

# Samples that L is estimated from, and samples whose own L_i is; a step needs no third digit.
SUBSET, SINGLES = 1_000, 10
TOLERANCE, MAX_ITERATIONS = 0.05, 30
# The part of the step that the first epoch has: a small initialisation is flat, and its step would
# leave the units of a ReLU network dead at once, with a lower loss and no way back.
FIRST = 1 / 16
# By how much a step may grow from one estimate to the next: where all samples are fitted, the
# curvature of a cross-entropy vanishes, and comes back with the first step that goes too far.
MAX_GROWTH = 4.0
# Roundings of x in a row that count as no movement; the errors of the gradient come on top of x's.
ROUNDINGS = 10


class Step(NamedTuple):
    """The step of an epoch, and what an automatic one comes from.

    Attributes:
      lr: eta; nan before one has been chosen.
      smoothness: the estimate of what steps feel, see `felt`; nan if there is none, or the Hessian
        is not finite.
      fraction: eta is at most this over the smoothness: 1, or less after an epoch that went wrong.
      halved: whether the last epoch went wrong with a longer one.
    """

    lr: float
    smoothness: float = math.nan
    fraction: float = 1.0
    halved: bool = False

    def half(self) -> Step:
        """The step with which an epoch that went wrong is done again."""
        lr = self.lr / 2
        fraction = lr * self.smoothness if self.smoothness > 0 else self.fraction
        return Step(lr, self.smoothness, fraction, halved=True)


class Curvature(NamedTuple):
    """Estimates at one x, from below.

    Attributes:
      of_mean: L, of f.
      of_one: the largest L_i of some single f_i.
      grad_evals: component gradients that the estimates are worth: a product with the Hessian of
        one f_i takes about as long as two.
    """

    of_mean: float
    of_one: float
    grad_evals: int


def estimate(
    objective: Objective, x: Array, data: Data, *, seed: int, chunk_size: int
) -> Curvature:
    """The curvature of f, and of single f_i, at x.

    Args:
      objective: the finite sum.
      x: float [d].
      data: a pytree of arrays [n, ...].
      seed: of the samples that are looked at.
      chunk_size: samples at once; bounds the memory.

    Returns:
      A Curvature, with L and L_i of nan where the Hessian is not finite.

    Raises:
      InputError: jax cannot take the second derivative of the loss.

    >>> import jax.numpy as jnp
    >>> objective = objectives.from_loss(lambda w, z: 0.5 * (w @ z) ** 2, jnp.zeros(2))
    >>> found = estimate(objective, jnp.zeros(2), jnp.eye(2), seed=0, chunk_size=10)
    >>> round(found.of_mean, 3), round(found.of_one, 3)
    (0.5, 1.0)
    >>> found.grad_evals  # two products for both samples, three for each of them alone
    20

    Source: `asvrg.theory.estimate_smoothness`.
    """
    rows = np.random.default_rng(seed).permutation(objectives.num_samples(data))[:SUBSET]
    products = 0

    def largest(indices: np.ndarray) -> float:
        nonlocal products
        products += len(indices)  # also where the first one is not finite, and the last
        found = smoothness.estimate_smoothness(
            objective,
            x,
            objectives.take(data, indices),
            tolerance=TOLERANCE,
            max_iterations=MAX_ITERATIONS,
            seed=seed,
            chunk_size=chunk_size,
        )
        products += len(indices) * (found.iterations - 1)
        return found.value

    try:
        of_mean = largest(rows)
        of_one = max(largest(row[None]) for row in rows[:SINGLES])
    except InputError:
        return Curvature(math.nan, math.nan, 2 * products)
    except (TypeError, ValueError, NotImplementedError) as error:
        sentence = str(error).partition("\n")[0].rstrip(".")
        raise InputError(
            "lr must be given for this loss: its smoothness cannot be estimated, as it has no "
            f"second derivative that jax can take in forward mode ({sentence})."
        ) from error
    return Curvature(of_mean, max(of_one, of_mean), 2 * products)


def felt(curvature: Curvature, batch_size: int, delay: float) -> float:
    """The smoothness that steps of b samples at delays tau feel: (1 - 1/b) L + L_max / b + tau L.

    The first two terms bound E ||grad f_I(x) - grad f_I(x*)||^2 / (2 (f(x) - f(x*))) for convex f_i
    and b samples I with replacement: the mean of their gradients has the square of its expectation
    with weight 1 - 1/b, and the square of a single one with weight 1/b. The third is what delays
    cost: tau updates are on their way that an update does not know of.

    Args:
      curvature: L and L_max.
      batch_size: b.
      delay: tau, in updates, on average.

    Returns:
      A number above 0, or 0 if f is flat.

    >>> felt(Curvature(1.0, 5.0, 0), 4, 0.0)
    2.0

    Source: expected smoothness, as in Gower et al. (2019), SGD: general analysis and improved
    rates; the delays, Mishchenko, Bach, Even and Woodworth (2022), Asynchronous SGD beats minibatch
    SGD under arbitrary delays, whose steps are 1 / (L tau).
    """
    of_batch = (1 - 1 / batch_size) * curvature.of_mean + curvature.of_one / batch_size
    return of_batch + delay * curvature.of_mean


def next_step(last: Step | None, smoothness_: float, metrics: Metrics, inner_steps: int) -> Step:
    """The step after an estimate: fraction / smoothness, but at most four times the last step.

    The first one is a sixteenth of that. Where f has no curvature (an absolute value, say), or
    none that is finite, it says nothing about steps, and the first one is |f(x)| / (m ||grad
    f(x)||^2), with which an epoch along the gradient takes f down by its own size.

    Args:
      last: the Step before; None for the first one.
      smoothness_: the estimate, at least 0, or nan.
      metrics: of x.
      inner_steps: m.

    Returns:
      A Step.

    Raises:
      InputError: it is the first step, and neither gradient nor curvature says where to go.

    >>> first = next_step(None, 4.0, Metrics(1.0, 0.0, 1.0), 10)
    >>> first.lr, next_step(first, 4.0, Metrics(1.0, 0.0, 1.0), 10).lr
    (0.015625, 0.0625)
    """
    if smoothness_ > 0 and last is None:
        return Step(FIRST / smoothness_, smoothness_)
    if smoothness_ > 0 and last is not None:
        # What went well with a larger fraction of the new estimate shows that the old one was off.
        fraction = min(1.0, max(last.fraction, last.lr * smoothness_))
        return Step(min(fraction / smoothness_, MAX_GROWTH * last.lr), smoothness_, fraction)
    if last is not None:
        return last._replace(smoothness=smoothness_, halved=False)
    if metrics.grad_norm_sq == 0:
        raise InputError(
            "lr must be given to go on from here, as the gradient of loss at params is 0 and its "
            f"curvature {smoothness_:g}: params may be a minimum already, or loss does not depend "
            "on them."
        )
    return Step((abs(metrics.loss) or 1.0) / (inner_steps * metrics.grad_norm_sq), smoothness_)


def is_due(epoch: int, last: Step | None) -> bool:
    """Whether to estimate again: after 0, 1, 2, 4, 8, ... epochs, and where one has gone wrong.

    Most of the change is early, and log2(S) estimates cost little beside S epochs.

    Args:
      epoch: s, epochs done.
      last: the Step of the last one; None before the first.

    Returns:
      Whether it is time.

    >>> [epoch for epoch in range(20) if is_due(epoch, Step(0.1))]
    [0, 1, 2, 4, 8, 16]
    """
    return epoch & (epoch - 1) == 0 or (last is not None and last.halved)


def is_worse(first: float, before: float, after: float, *, noisy: bool) -> bool:
    """Whether an epoch went so wrong that it is done again: the loss is clearly higher after it.

    Where variance is reduced, the loss falls in every epoch, but for rounding and bad luck. SGD
    with a constant step ends in a noise, as large as a part of what it has won, and so does SVRG
    with another coefficient than 1, which leaves a part of the variance.

    Args:
      first: the loss before training.
      before: the loss before the epoch.
      after: the loss after it.
      noisy: whether the variance is not reduced, or only in part.

    Returns:
      Whether the loss is no finite number, or has risen by more than 0.1 % of itself and 1 % of
      what had been won before (20 % with noise).

    >>> is_worse(2.0, 1.0, 1.005, noisy=False), is_worse(2.0, 1.0, 1.02, noisy=False)
    (False, True)
    """
    share = 0.2 if noisy else 0.01
    margin = 0.001 * abs(before) + share * max(0.0, first - before)
    return not np.isfinite(after) or after - before > margin


def has_moved(before: Array, after: Array, inner_steps: int) -> bool:
    """Whether an epoch has taken x further than the rounding of its updates takes it.

    Where it has not, x is as good as its dtype allows, and the loss, which may be all rounding,
    says nothing about the step: a run that begins at the solution of consistent equations, say.

    Args:
      before: x before the epoch, float [d].
      after: x after it, float [d].
      inner_steps: m.

    Returns:
      Whether ||after - before|| > 10 eps sqrt(m) ||before||, with eps of x's dtype.

    >>> x = np.ones(4, np.float32)
    >>> has_moved(x, x + np.float32(1e-6), 100), has_moved(x, x + np.float32(1e-4), 100)
    (False, True)
    """
    x = np.asarray(before)
    moved = np.linalg.norm(np.asarray(after, np.float64) - x)
    limit = ROUNDINGS * np.finfo(x.dtype).eps * math.sqrt(inner_steps) * np.linalg.norm(x)
    return bool(moved > limit)
