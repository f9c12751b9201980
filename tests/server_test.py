"""The server's books, against workers that are played here; epochs are in inner_loop_test.py."""

from __future__ import annotations

import pytest

from asvrg.drivers.mpi.protocol import RankError
from asvrg.drivers.mpi.server import Server
from tests.fake_star import Star, Worker
from tests.inner_loop_test import plan_of, run_job

pytestmark = pytest.mark.timeout(60)


def test_the_last_workers_death_is_the_end() -> None:
    for moment in (2, 9, 16, 60, 90):
        plan = plan_of(2)
        star = Star(plan, moment, deaths={moment: 2, moment + 3: 1})
        server = Server(star, plan)
        with pytest.raises(RankError, match="^No worker is left.$") as caught:
            run_job(star, server, inner_steps=500)
        assert caught.value.rank is None


def test_a_worker_with_other_settings_is_refused() -> None:
    plan = plan_of(3)
    star = Star(plan, 0)
    star.workers[2] = Worker(2, plan_of(3, seed=1), sums=True)
    with pytest.raises(RankError, match="Rank 2 failed with settings other than the server's"):
        Server(star, plan).greet()


@pytest.mark.parametrize("lacking", [None, 1, 3])
def test_all_workers_must_have_mpi4jax_for_collectives(lacking) -> None:
    plan = plan_of(3)
    star = Star(plan, 0)
    if lacking:
        star.workers[lacking].sent[0][0].content.header[0] = 0
    assert Server(star, plan).greet() == (lacking is None)
