"""What all drivers refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from asvrg import sampling
from asvrg.drivers import mpi, simulate, threads
from asvrg.drivers.mpi.protocol import make_plan
from asvrg.drivers.mpi.server import Server
from asvrg.errors import InputError
from tests.fake_star import Star
from tests.thread_runs import COUNTING

SPEC = sampling.sampler(4, 3, batch_size=1)
PLAN = make_plan(SPEC, np.dtype("float64"), 2, shard_sizes=None, chunk_size=2)


def serving() -> mpi.Serving:
    job: Any = mpi.Job(0, 2, True, None)
    return mpi.Serving(job, Server(Star(PLAN, 0), PLAN), None, {})


DRIVERS: dict[str, Any] = {
    "simulate": lambda estimator, **options: simulate.driver(
        estimator, np.zeros(4), SPEC, **options
    ),
    "threads": lambda estimator, **options: threads.driver(
        estimator, np.zeros(4), SPEC, num_threads=2, **options
    ),
    "mpi": lambda estimator, **options: mpi.driver(serving(), estimator, **options),
}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"estimator": None}, "estimator must be an Estimator, got NoneType"),
        ({"estimator": "svrg"}, "estimator must be an Estimator, got str"),
        ({"inner_steps": 10**18}, "inner_steps must be a whole number from 1 to 2147483647, got"),
        ({"inner_steps": 2.0}, "inner_steps must be a whole number of at least 1, got 2.0"),
        ({"max_delay": 10**12}, "max_delay must be a whole number from 0 to 2147483647, got 1000"),
        ({"max_delay": float("nan")}, "max_delay must be a whole number of at least 0, got nan"),
    ],
)
def test_every_driver_refuses(driver: str, changed: dict[str, Any], sentence: str) -> None:
    arguments = {"estimator": COUNTING, "inner_steps": 5} | changed
    with pytest.raises(InputError, match=sentence):
        DRIVERS[driver](arguments.pop("estimator"), **arguments)


@pytest.mark.parametrize(
    ("driver", "option"),
    [("threads", "sees_own"), ("threads", "delay_adaptive"), ("mpi", "overlap")],
)
def test_a_word_is_no_switch(driver: str, option: str) -> None:
    with pytest.raises(InputError, match=f"{option} must be True or False, got 'no'"):
        DRIVERS[driver](COUNTING, inner_steps=5, **{option: "no"})


def test_threads_that_no_machine_has_are_refused() -> None:
    with pytest.raises(InputError, match="num_threads must be a whole number from 1 to 16384"):
        threads.driver(COUNTING, np.zeros(4), SPEC, inner_steps=5, num_threads=10**9)


@pytest.mark.parametrize(
    ("trace", "sentence"),
    [
        (3, "trace must be a function, got int"),
        (lambda epoch: None, "what trace returns must be a Trace, got NoneType"),
    ],
)
def test_what_is_no_trace_is_refused(trace: Any, sentence: str) -> None:
    def run() -> None:
        driver = simulate.driver(COUNTING, np.zeros(4), SPEC, inner_steps=5, trace=trace)
        driver.warm_up(np.zeros(3))

    with pytest.raises(InputError, match=sentence):
        run()
