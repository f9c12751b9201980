"""A worker, told what to do by a script: its sums, its caches, its draws and its v."""

from __future__ import annotations

import collections
import functools
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from asvrg import estimators, sampling
from asvrg.drivers.mpi.protocol import GRANT, Packet, Plan, Tag, make_plan, packet
from asvrg.drivers.mpi.worker import Worker
from asvrg.errors import InputError
from asvrg.estimators import Estimator
from asvrg.sampling import Stream
from asvrg.schedules import Schedule
from asvrg.types import Shard, Snapshot
from tests import problems
from tests.problems import Problem

pytestmark = pytest.mark.timeout(60)

Script = list[tuple[Tag, tuple[int, ...], np.ndarray | None] | np.ndarray]
STOP = (Tag.STOP, (), None)


@functools.cache
def estimator_of(method: str, name: str) -> Estimator:
    """The same estimator every time, so that compilations are shared."""
    return getattr(estimators, method)(problems.get(name).objective)


def plan_of(problem: Problem, **options) -> Plan:
    """Shards of 7 and 5 samples, in units of 3, 3, 1 and 3, 2."""
    spec = sampling.sampler(problems.NUM_SAMPLES, problem.objective.dim, batch_size=2, seed=4)
    options = {"shard_sizes": [7, 5], "chunk_size": 3} | options
    return make_plan(spec, np.dtype(problem.x0.dtype), len(options["shard_sizes"]), **options)


class Line:
    """Says what the script says, a WORK only to who asks for one; keeps what it hears."""

    def __init__(self, script: Script) -> None:
        self._script = collections.deque(script)
        self.heard: list[tuple[Tag, np.ndarray | None]] = []
        self.header: Sequence[int] = ()  # of what it heard last
        self.directions: list[np.ndarray] = []

    def receive(self) -> tuple[Tag, Packet]:
        said = self._script.popleft()
        assert isinstance(said, tuple), "the worker left a WORK behind"
        tag, header, payload = said
        raw = np.zeros(0, np.uint8) if payload is None else payload.view(np.uint8)
        message = packet(max(len(raw), 8_192))  # as long as the longest, like the real one
        message.header[: len(header)] = header
        message.payload[: len(raw)] = raw
        return tag, message

    def send(self, tag: Tag, header: Sequence[int] = (), payload: np.ndarray | None = None) -> None:
        self.header = header
        self.heard.append((tag, None if payload is None else payload.copy()))

    def receive_vector(self, x: np.ndarray) -> None:
        said = self._script.popleft()
        assert isinstance(said, np.ndarray), "the worker wants a WORK that was not sent"
        x[:] = said

    def send_vector(self, v: np.ndarray) -> None:
        self.directions.append(v.copy())

    def gradients(self) -> list[np.ndarray | None]:
        return [payload for tag, payload in self.heard if tag is Tag.GRAD]


def run(
    script: Script,
    plan: Plan,
    problem: Problem,
    *,
    rank: int = 1,
    methods=("svrg",),
    alpha: Schedule | None = None,
) -> Line:
    """What the server hears from a worker in a script that ends with STOP."""
    name = next(name for name in problems.NAMES if problems.get(name) is problem)
    chosen = [estimator_of(method, name)._replace(alpha=alpha) for method in methods]
    line = Line([*script, STOP])
    Worker(line, plan, chosen, problem.data, rank, None).run()
    return line


def points(problem: Problem, count: int) -> list[np.ndarray]:
    """Different x_hat."""
    return [problems.other_point(problem, 0.1 * (i + 1)) for i in range(count)]


def expected_directions(
    problem: Problem,
    plan: Plan,
    shard: Shard,
    x_hats: list[np.ndarray],
    *,
    x_tilde: np.ndarray | None = None,
    full_grad: np.ndarray | None = None,
    epoch: int = 0,
    stream: int = 0,
    skip: int = 0,
    alpha: float = 1.0,
) -> list[np.ndarray]:
    """Equation (5) by the formulas of the problem; without x_tilde the mini-batch gradient."""
    draws = Stream(plan.sampler, epoch, stream, shard).take(skip + len(x_hats))
    expected = []
    for i, x_hat in enumerate(x_hats, skip):
        gradient = problems.sample_grads(problem, x_hat)
        if x_tilde is not None:
            gradient = gradient - alpha * problems.sample_grads(problem, x_tilde)
        v = draws.weight[i] * gradient[draws.batch[i]].mean(0)
        expected.append(v if full_grad is None else v + alpha * full_grad)
    return expected


def sum_over(problem: Problem, samples: np.ndarray, x: np.ndarray) -> np.ndarray:
    return problems.sample_grads(problem, x)[samples].sum(0)


@pytest.mark.parametrize(
    ("name", "sizes", "chunk_size"),
    [("tanh_deep", [7, 5], 3), ("logistic", [7, 5], 100), ("logistic", [11, 1], 4)],
)
def test_its_gradient_is_the_sum_over_its_samples(name, sizes, chunk_size) -> None:
    """Whatever the sizes of its units, those left over among them."""
    problem = problems.get(name)
    plan = plan_of(problem, shard_sizes=sizes, chunk_size=chunk_size)
    for rank in (1, 2):
        script: Script = [(Tag.PREPARE, (0, 2), x) for x in (problem.x0, *points(problem, 1))]
        line = run(script, plan, problem, rank=rank)
        samples = plan.shard(plan.shards[rank - 1], 2).samples
        for (_, _, x), found in zip(script, line.gradients(), strict=True):
            np.testing.assert_allclose(found, sum_over(problem, samples, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["svrg", "sgd"])
@pytest.mark.parametrize("name", ["tanh_deep", "logistic"])
def test_it_answers_every_work_with_the_next_draw_of_its_stream(method, name) -> None:
    """Over two grants of one stream, and one of the next epoch, which begins another."""
    problem = problems.get(name)
    plan = plan_of(problem)
    x_hats = points(problem, 7)
    full_grad = np.linspace(-1, 1, len(problem.x0))  # whatever the server says
    tell = [(Tag.FULL, (), full_grad)] if method == "svrg" else []
    prepare = (Tag.PREPARE, (0, 2), problem.x0)
    script: Script = [
        *(prepare, *tell, (Tag.GRANT, (3, 4, 1), None), *x_hats[:4]),
        *((Tag.GRANT, (3, 1, 1), None), x_hats[4]),
        *(prepare, *tell, (Tag.GRANT, (4, 2, 1), None), *x_hats[5:]),
    ]
    line = run(script, plan, problem, rank=2, methods=(method,))
    at = {"x_tilde": problem.x0, "full_grad": full_grad} if method == "svrg" else {}
    shard = plan.shard(plan.shards[1], 2)
    expected = [
        *expected_directions(problem, plan, shard, x_hats[:5], epoch=3, stream=1, **at),
        *expected_directions(problem, plan, shard, x_hats[5:], epoch=4, stream=1, **at),
    ]
    np.testing.assert_allclose(line.directions, expected, rtol=0, atol=1e-12)
    if method == "sgd":
        assert line.gradients() == [None, None]


def test_v_is_the_estimators_to_the_last_bit() -> None:
    """Jitted as every driver does; a whole GRANT, with the cache of all samples made at once."""
    problem = problems.get("tanh_deep")
    plan = plan_of(problem, shard_sizes=[12], chunk_size=12)
    x_hats = points(problem, GRANT)
    full_grad = problems.sample_grads(problem, problem.x0).mean(0)
    script: Script = [
        *((Tag.PREPARE, (0, 1), problem.x0), (Tag.FULL, (), full_grad)),
        *((Tag.GRANT, (0, GRANT, 0), None), *x_hats),
    ]
    line = run(script, plan, problem)
    _, cache = jax.jit(problem.objective.grad_and_cache)(problem.x0, problem.data)
    snapshot = Snapshot(problem.x0, full_grad, cache)
    draws = Stream(plan.sampler, 0, 0, plan.shard(plan.shards[0], 1)).take(GRANT)
    estimate = jax.jit(estimator_of("svrg", "tanh_deep").estimate)
    for i, x_hat in enumerate(x_hats):
        draw = jax.tree.map(lambda leaf, i=i: leaf[i], draws)
        expected = estimate(x_hat, snapshot, problem.data, draw)
        np.testing.assert_array_equal(line.directions[i], expected)


@pytest.mark.parametrize("when", ["before FULL", "between two grants"])
def test_after_a_takeover_it_draws_from_all_of_its_units(when) -> None:
    """It sends the sum of the new ones alone, and has their cache. The old stream may go on."""
    problem = problems.get("tanh_deep")
    plan = plan_of(problem)
    full_grad = problems.sample_grads(problem, problem.x0).mean(0)
    at = {"x_tilde": problem.x0, "full_grad": full_grad}
    x_hats = points(problem, 43)
    prepare, tell = (Tag.PREPARE, (0, 2), problem.x0), (Tag.FULL, (), full_grad)
    takeover = (Tag.SHARD, (2, 1), np.array([4, 3], np.int32))
    before = plan.shard([0, 1, 2], 2)
    after = plan.shard([0, 1, 2, 4, 3], 1)
    grant = ((Tag.GRANT, (0, 40, 2), None), *x_hats[3:])
    script: Script
    if when == "before FULL":
        script = [prepare, takeover, tell, *grant]
        expected = []
    else:
        script = [prepare, tell, (Tag.GRANT, (0, 3, 0), None), *x_hats[:3], takeover, *grant]
        expected = expected_directions(problem, plan, before, x_hats[:3], **at)
    line = run(script, plan, problem)
    expected += expected_directions(problem, plan, after, x_hats[3:], stream=2, **at)
    np.testing.assert_allclose(line.directions, expected, rtol=0, atol=1e-12)
    mine, taken = (sum_over(problem, s, problem.x0) for s in (before.samples, after.samples[7:]))
    np.testing.assert_allclose(line.gradients(), [mine, taken], rtol=0, atol=1e-12)
    draws = Stream(plan.sampler, 0, 2, after).take(40).batch
    assert np.isin(after.samples[7:], draws).all(), "no draw shows the new caches"


def test_an_empty_takeover_changes_the_weight_and_nothing_else() -> None:
    """Of two survivors one gets the dead worker's only unit; the other learns of the new K."""
    problem = problems.get("logistic")
    plan = plan_of(problem, shard_sizes=[6, 5, 1])
    full_grad = np.zeros_like(problem.x0)
    x_hats = points(problem, 5)
    script: Script = [
        *((Tag.PREPARE, (0, 3), problem.x0), (Tag.FULL, (), full_grad)),
        (Tag.SHARD, (0, 2), np.zeros(0, np.int32)),
        *((Tag.GRANT, (0, 5, 3), None), *x_hats),
    ]
    line = run(script, plan, problem)
    np.testing.assert_array_equal(line.gradients()[1], full_grad)
    shard = Shard(np.arange(6, dtype=np.int32), 6 * 2 / 12)
    expected = expected_directions(problem, plan, shard, x_hats, stream=3, x_tilde=problem.x0)
    np.testing.assert_allclose(line.directions, expected, rtol=0, atol=1e-12)


def test_it_takes_the_estimator_that_the_server_names() -> None:
    """SGD for an epoch, then SVRG: the warm-up of SGD_SVRG."""
    problem = problems.get("tanh_deep")
    plan = plan_of(problem)
    x_hats = points(problem, 6)
    full_grad = np.linspace(0, 1, len(problem.x0))
    script: Script = [
        *((Tag.WARM, (0, 0), None), (Tag.WARM, (1, 0), None)),
        *((Tag.PREPARE, (0, 2), problem.x0), (Tag.GRANT, (0, 3, 0), None), *x_hats[:3]),
        *((Tag.PREPARE, (1, 2), problem.x0), (Tag.FULL, (), full_grad)),
        *((Tag.GRANT, (1, 3, 0), None), *x_hats[3:]),
    ]
    line = run(script, plan, problem, methods=("sgd", "svrg"))
    tags = [tag for tag, _ in line.heard]
    assert tags == [Tag.READY, Tag.READY, Tag.READY, Tag.GRAD, Tag.GRAD]
    shard = plan.shard(plan.shards[0], 2)
    at = {"x_tilde": problem.x0, "full_grad": full_grad}
    expected = [
        *expected_directions(problem, plan, shard, x_hats[:3]),
        *expected_directions(problem, plan, shard, x_hats[3:], epoch=1, **at),
    ]
    np.testing.assert_allclose(line.directions, expected, rtol=0, atol=1e-12)


def test_its_coefficient_is_that_of_the_epoch() -> None:
    problem = problems.get("tanh_deep")
    plan = plan_of(problem)
    x_hats = points(problem, 4)
    full_grad = np.linspace(0, 1, len(problem.x0))
    prepare = ((Tag.PREPARE, (0, 2), problem.x0), (Tag.FULL, (), full_grad))
    script: Script = [
        *(*prepare, (Tag.GRANT, (0, 2, 0), None), *x_hats[:2]),
        *(*prepare, (Tag.GRANT, (3, 2, 0), None), *x_hats[2:]),
    ]
    line = run(script, plan, problem, alpha=lambda epoch: 0.5 - 0.1 * epoch)
    shard = plan.shard(plan.shards[0], 2)
    at = {"x_tilde": problem.x0, "full_grad": full_grad}
    expected = [
        *expected_directions(problem, plan, shard, x_hats[:2], alpha=0.5, **at),
        *expected_directions(problem, plan, shard, x_hats[2:], alpha=0.2, epoch=3, **at),
    ]
    np.testing.assert_allclose(line.directions, expected, rtol=0, atol=1e-12)


def test_its_first_word_is_the_digest_of_its_plan() -> None:
    problem = problems.get("logistic")
    plan = plan_of(problem)
    line = run([], plan, problem)
    ((tag, payload),) = line.heard
    assert (tag, payload.tobytes()) == (Tag.READY, plan.digest)
    assert list(line.header) == [False], "without mpi4jax"


def test_another_number_of_samples_is_refused_before_a_word_is_said() -> None:
    problem = problems.get("logistic")
    plan = plan_of(problem)
    data = jax.tree.map(lambda leaf: leaf[:7], problem.data)
    line = Line([])
    with pytest.raises(
        InputError, match="must draw from the 7 samples of the data, got one for 12."
    ):
        Worker(line, plan, [estimator_of("sgd", "logistic")], data, 1, None)
    assert line.heard == []
