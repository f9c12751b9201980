"""The iterations of an epoch: how many there are, and what each of them draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from absl import flags

from asvrg import sampling
from asvrg.errors import INT32, check_count
from asvrg.sampling import Sampler
from experiments.methods import Phase
from experiments.problem import Problem

# Threads of one process and simulated workers: more than any machine has cores for.
MOST_WORKERS = 1 << 14


def define_flags(values: flags.FlagValues, *, inner_steps: int) -> None:
    """Adds the flags of the iterations; `inner_steps` is the paper's number."""
    flags.DEFINE_integer(
        "batch_size", None, "b, samples of a mini-batch. Default: 10, or n.", flag_values=values
    )
    flags.DEFINE_integer(
        "inner_steps",
        inner_steps,
        "m, updates in an epoch, those of all workers together.",
        flag_values=values,
    )


def define_delay_flags(values: flags.FlagValues) -> None:
    """Adds the flags of what is done about delays, to binaries whose drivers heed them."""
    flags.DEFINE_integer(
        "max_delay",
        None,
        "Delta, the longest delay of an update: workers that are too far ahead wait. Default: no "
        "limit.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "delay_adaptive",
        False,
        "Scale the steps of late updates down: by C / delay where the delay is above C, the number "
        "of gradients that are in the making at once.",
        flag_values=values,
    )


def check_flags(values: flags.FlagValues) -> None:
    """Raises InputError unless the numbers among the flags are accepted; early, before the data."""
    check_count("--inner_steps", values.inner_steps, limit=INT32)
    if values.max_delay is not None:
        check_count("--max_delay", values.max_delay, least=0, limit=INT32)


def describe(problem_: Problem, sampler: Sampler, phases: Sequence[Phase]) -> dict[str, Any]:
    """What became of flags without a value, for config.json.

    Args:
      problem_: what is minimised.
      sampler: of the draws.
      phases: of the method.

    Returns:
      A dictionary: sizes and steps.
    """
    return {
        "num_train": sampler.num_samples,
        "num_test": len(problem_.test[1]),
        "dim": sampler.dim,
        "batch_size": sampler.batch_size,
        "steps": [phase.step._asdict() for phase in phases],
    }


def make_sampler(
    values: flags.FlagValues, problem_: Problem, *, block_size: int | None = None
) -> Sampler:
    """The draws that the flags describe.

    Args:
      values: parsed, with the flags of `define_flags` and of `problem`.
      problem_: gives n and d.
      block_size: B; None if every iteration updates all of x.

    Returns:
      A Sampler.

    Raises:
      InputError: --batch_size or --block_size is not accepted.
    """
    n, dim = len(problem_.train[1]), problem_.objective.dim
    batch_size = min(10, n) if values.batch_size is None else values.batch_size
    check_count("--batch_size", batch_size, most=n)
    if block_size is not None:
        check_count("--block_size", block_size, most=dim)
    return sampling.sampler(n, dim, batch_size=batch_size, block_size=block_size, seed=values.seed)
