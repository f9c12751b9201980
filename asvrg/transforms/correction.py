"""svrg() for a chain of optax: the correction of Equation (5), with a coefficient, over any pytree.

The transformation sees gradients, never data or a loss. What it needs besides comes with the call
of `update`, by keyword: functions of the parameters that the caller closes over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asvrg.errors import INT32, INT64, InputError, check_count, check_kind, check_real
from asvrg.estimators import direction
from asvrg.transforms.trees import (
    at_least_single,
    check_arrays,
    copy,
    fit,
    inner,
    is_gap,
    known,
    placed,
)
from asvrg.types import PyTree

GradFn = Callable[[PyTree], PyTree]
# The averages of the telemetry run over all measured steps, or about the last 1 / (1 - DECAY).
DECAY = 0.99


class Telemetry(NamedTuple):
    """What svrg() measured of its own correction; float32 scalars but for the count.

    With C = g_s - mu, the noise of the mini-batch gradient g_s at the snapshot, and sums over all
    coordinates: given x_t, C has mean zero, so each is an average of unbiased estimates, whatever
    the current gradient grad f(x_t) may be. (Unbiased as far as the batch is drawn uniformly and mu
    is the full gradient.) The averages are over the steps measured so far, then exponential, with
    a memory of about 100 steps.

    Attributes:
      steps: int32, how many steps were measured: those that had a snapshot.
      variance: of ||C||^2, estimates the variance E ||g_s - mu||^2 of the mini-batch gradient at
        the snapshot.
      covariance: of <g - mu, C>, estimates the trace of the covariance of g and g_s.
      reduction: of 2 alpha <g - mu, C> - alpha^2 ||C||^2, estimates E ||g - E g||^2 minus
        E ||v - E v||^2: by how much the variance of v is below that of g. Negative where the
        correction hurts. The alpha that makes it largest is covariance / variance.
    """

    steps: jax.Array
    variance: jax.Array
    covariance: jax.Array
    reduction: jax.Array


class SvrgState(NamedTuple):
    """The state of svrg(): arrays only, of shapes and dtypes that never change.

    Attributes:
      snapshot: x_tilde, like the parameters.
      full_grad: mu = grad f(x_tilde), like the parameters, in float32 where these have less.
      step: int32, updates done; what a schedule of alpha is a function of.
      age: int32, updates done with this snapshot.
      num_snapshots: int32; 0 before the first, when v is g.
      key: uint32, the data of the random key of the loopless coin.
      telemetry: what was measured.
    """

    snapshot: PyTree
    full_grad: PyTree
    step: jax.Array
    age: jax.Array
    num_snapshots: jax.Array
    key: jax.Array
    telemetry: Telemetry


def svrg(
    *,
    every: int | None = None,
    probability: float | None = None,
    alpha: float | optax.Schedule = 1.0,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Equation (5) with a coefficient: v = g - alpha (g_s - mu).

    Here g is the gradient of a batch, g_s that of the same batch at the snapshot, and mu the full
    gradient at the snapshot. With alpha = 1 this is Equation (5), with alpha = 0 v is g; a linear
    decay from 1 to 0 is alpha-SVRG. The transformation belongs first in a chain, where g is still
    the gradient of a batch, and outside of wrappers that gather or mask gradients.

    A snapshot is taken of the parameters that `update` is given, before the step is made: in the
    first update and every `every` updates, or in the first update and then with `probability`
    (loopless); with neither, by hand with `refresh`, and until the first `refresh` v is g.

    `update(g, state, params, ...)` takes, beside the parameters, these extra arguments:

    - `grad_fn`: parameters -> gradient on the batch of g. Called once, at the snapshot. Or, in its
      place, `snapshot_grad`: that gradient, ready, at `state.snapshot` as it is before the update.
      (If this very update takes a snapshot, g itself is used, which is the gradient there.)
    - `full_grad_fn`: parameters -> full gradient, with `every` or `probability` only, which need
      it. Called under `jax.lax.cond` in the updates that take a snapshot, so it must be traceable.

    Args:
      every: m, updates from one snapshot to the next.
      probability: p of a new snapshot in each update, above 0 and at most 1.
      alpha: a number, or an optax schedule: a function of the number of updates done.
      seed: of the coin that `probability` speaks of.

    Returns:
      An optax.GradientTransformationExtraArgs with an SvrgState. Its updates have the dtypes of g;
      what is computed on the way has at least float32.

    Raises:
      InputError: an argument is out of its range, `every` and `probability` are both given, or,
        from `update`, an extra argument is missing or does not fit the parameters.

    >>> loss = lambda x, batch: 0.5 * jnp.mean((x - batch) ** 2)
    >>> data, batch = jnp.array([0.0, 2.0, 7.0]), jnp.array([7.0])
    >>> optimiser = optax.chain(svrg(every=2), optax.scale(-0.5))
    >>> x = jnp.array(1.0)
    >>> updates, state = optimiser.update(
    ...     jax.grad(loss)(x, batch),
    ...     optimiser.init(x),
    ...     x,
    ...     grad_fn=lambda x: jax.grad(loss)(x, batch),
    ...     full_grad_fn=lambda x: jax.grad(loss)(x, data),
    ... )
    >>> updates  # -0.5 times the gradient on all data, though the batch is far off
    Array(1., dtype=float32)

    Source: Johnson and Zhang (2013); Kovalev, Horvath and Richtarik (2020), Don't jump through
    hoops and remove those loops, for the loopless form; Yin et al. (2025), A coefficient makes SVRG
    effective, for alpha.
    """
    if every is not None and probability is not None:
        raise InputError(
            "svrg takes snapshots by one policy, so give every or probability, or neither to take "
            f"them by hand, got every={every!r} and probability={probability!r}."
        )
    if every is not None and known(every):
        check_count("every", every, limit=INT32)
    if probability is not None and known(probability):
        check_real("probability", probability, above=True, most=1.0)
    if not callable(alpha) and known(alpha):
        check_real("alpha", alpha, least=-np.inf)
    if known(seed):
        check_count("seed", seed, least=0, limit=INT64)
    automatic = every is not None or probability is not None

    def init(params: PyTree) -> SvrgState:
        check_arrays(params)
        return SvrgState(
            snapshot=jax.tree.map(copy, params),
            full_grad=jax.tree.map(lambda p: jnp.zeros_like(p, dtype=at_least_single(p)), params),
            step=jnp.zeros((), jnp.int32),
            age=jnp.zeros((), jnp.int32),
            num_snapshots=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(jax.random.key(seed)),
            telemetry=Telemetry(
                jnp.zeros((), jnp.int32), *(jnp.zeros((), jnp.float32) for _ in range(3))
            ),
        )

    def is_due(state: SvrgState) -> jax.Array:
        first = state.num_snapshots == 0
        if every is not None:
            return first | (state.age >= jnp.asarray(every, jnp.int32))
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        coin = jax.random.uniform(key, (), jnp.float32) < jnp.asarray(probability, jnp.float32)
        return first | coin

    def update(
        updates: PyTree,
        state: SvrgState,
        params: PyTree | None = None,
        *,
        grad_fn: GradFn | None = None,
        snapshot_grad: PyTree | None = None,
        full_grad_fn: GradFn | None = None,
        **others: Any,
    ) -> tuple[PyTree, SvrgState]:
        del others  # of other transformations in the chain
        check_kind("state", state, SvrgState)
        _check_extra_args(automatic, params, grad_fn, snapshot_grad, full_grad_fn)
        if automatic:
            due = is_due(state)
            state = jax.lax.cond(
                due,
                lambda: _taken(state, params, _call("full_grad_fn", full_grad_fn, params)),
                lambda: state,
            )
        if grad_fn is not None:
            at_snapshot = fit("grad_fn", _call("grad_fn", grad_fn, state.snapshot), updates)
        else:
            at_snapshot = fit("snapshot_grad", snapshot_grad, updates)
            if automatic:
                at_snapshot = jax.tree.map(
                    lambda g, g_s: jnp.where(due, g.astype(g_s.dtype), g_s), updates, at_snapshot
                )
        coefficient = _coefficient(alpha(state.step) if callable(alpha) else alpha)
        has_snapshot = state.num_snapshots > 0
        coefficient = jnp.where(has_snapshot, coefficient, 0)
        noise = jax.tree.map(
            lambda g_s, mu: g_s.astype(mu.dtype) - mu, at_snapshot, state.full_grad
        )
        v = jax.tree.map(
            lambda g, g_s, mu: _corrected(g, g_s, mu, coefficient),
            updates,
            at_snapshot,
            state.full_grad,
        )
        return v, state._replace(
            step=optax.safe_increment(state.step),
            age=optax.safe_increment(state.age),
            telemetry=_measured(state, updates, noise, coefficient, has_snapshot),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def refresh(opt_state: PyTree, params: PyTree, full_grad: PyTree) -> PyTree:
    """Takes a snapshot by hand, in every svrg() of an optimiser's state. Pure; can be jitted.

    Args:
      opt_state: the state of a chain, or of whatever holds the state of an svrg().
      params: the parameters, all of them, which become the snapshot. They are copied, so that a
        step may donate them.
      full_grad: the full gradient there, with the structure of the parameters, as
        `full_gradients.over_batches` or `full_gradients.over_arrays` compute it.

    Returns:
      The state with the new snapshot, of the same shapes, dtypes and shardings.

    Raises:
      InputError: there is no SvrgState in the state, or the trees do not fit it.

    >>> optimiser = optax.chain(svrg(), optax.scale(-0.5))
    >>> x = jnp.array(1.0)
    >>> state = refresh(optimiser.init(x), x, jnp.array(-2.0))
    >>> optimiser.update(x - 7.0, state, x, snapshot_grad=x - 7.0)[0]
    Array(1., dtype=float32)

    Source: as for `svrg`.
    """
    states = jax.tree.leaves(opt_state, is_leaf=_is_svrg_state)
    if not any(map(_is_svrg_state, states)):
        raise InputError(
            "opt_state must hold the state of an svrg(), got one without: "
            f"{jax.tree.structure(opt_state)}."
        )

    def replace(node: Any) -> Any:
        if not _is_svrg_state(node):
            return node
        return jax.tree.map(placed, _taken(node, params, full_grad), node)

    return jax.tree.map(replace, opt_state, is_leaf=_is_svrg_state)


def _coefficient(alpha: Any) -> jax.Array:
    try:
        coefficient = jnp.asarray(alpha, float)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"alpha must be a number or a function of the step to one, got {alpha!r}."
        ) from error
    if coefficient.shape != ():
        raise InputError(
            "alpha must be one number, or a function of the step to one, got an array of shape "
            f"{coefficient.shape}."
        )
    return coefficient


def _corrected(g: jax.Array, g_s: jax.Array, mu: jax.Array, alpha: jax.Array) -> jax.Array:
    wide = at_least_single(g, mu)
    alpha = alpha.astype(wide)
    difference = g.astype(wide) - alpha * g_s.astype(wide)
    v = direction(difference, mu.astype(wide), alpha).astype(g.dtype)
    return jnp.where(alpha == 0, g, v)  # also where g_s is not finite


def _measured(
    state: SvrgState, updates: PyTree, noise: PyTree, alpha: jax.Array, counts: jax.Array
) -> Telemetry:
    centred = jax.tree.map(lambda g, mu: g.astype(mu.dtype) - mu, updates, state.full_grad)
    variance = _inner(noise, noise)
    covariance = _inner(centred, noise)
    alpha = alpha.astype(jnp.float32)
    last = state.telemetry
    weight = jnp.maximum(1 / (last.steps.astype(jnp.float32) + 1), 1 - DECAY)
    samples = variance, covariance, 2 * alpha * covariance - alpha**2 * variance
    averages = (
        jnp.where(counts, old + weight * (new - old), old)
        for old, new in zip(last[1:], samples, strict=True)
    )
    return Telemetry(last.steps + counts.astype(jnp.int32), *averages)


def _inner(a: PyTree, b: PyTree) -> jax.Array:
    return sum(jax.tree.leaves(jax.tree.map(inner, a, b)), jnp.zeros((), jnp.float32))


def _taken(state: SvrgState, params: PyTree, full_grad: PyTree) -> SvrgState:
    params = fit("params", params, state.snapshot)
    full_grad = fit("full_grad", full_grad, state.full_grad)
    return state._replace(
        snapshot=jax.tree.map(lambda p, old: copy(p, old.dtype), params, state.snapshot),
        full_grad=jax.tree.map(lambda g, old: copy(g, old.dtype), full_grad, state.full_grad),
        age=jnp.zeros((), jnp.int32),
        num_snapshots=optax.safe_increment(state.num_snapshots),
    )


def _check_extra_args(
    automatic: bool,
    params: PyTree | None,
    grad_fn: GradFn | None,
    snapshot_grad: PyTree | None,
    full_grad_fn: GradFn | None,
) -> None:
    if params is None:
        raise InputError("svrg needs the parameters, so call update(g, state, params, ...).")
    if (grad_fn is None) == (snapshot_grad is None):
        raise InputError(
            "svrg needs the gradient of g's batch at the snapshot, so give update one of the extra "
            "arguments grad_fn (a function of the parameters) and snapshot_grad (the gradient), "
            f"got {'neither' if grad_fn is None else 'both'}."
        )
    for name, function in (("grad_fn", grad_fn), ("full_grad_fn", full_grad_fn)):
        if function is not None and not callable(function):
            raise InputError(
                f"{name} must be a function of the parameters to a gradient, got "
                f"{type(function).__name__}."
            )
    if automatic and full_grad_fn is None:
        raise InputError(
            "svrg with every or probability needs the full gradient, so give update the extra "
            "argument full_grad_fn (a function of the parameters), or make svrg() without them and "
            "call refresh."
        )
    if not automatic and full_grad_fn is not None:
        raise InputError(
            "svrg() without every and probability takes snapshots by hand, with refresh, and would "
            "never call full_grad_fn; give svrg one of the two, or leave full_grad_fn away."
        )


def _call(name: str, function: GradFn | None, params: PyTree) -> PyTree:
    assert function is not None
    try:
        return function(params)
    except Exception as error:
        if any(map(is_gap, jax.tree.leaves(params, is_leaf=is_gap))):
            error.add_note(
                f"svrg stands inside of optax.masked or optax.multi_transform, so {name} was given "
                "a part of the parameters; let it complete them with asvrg.transforms.fill, or put "
                "svrg outside."
            )
        raise


def _is_svrg_state(node: Any) -> bool:
    return isinstance(node, SvrgState)
