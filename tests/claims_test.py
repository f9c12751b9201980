"""Claims: who may begin a window, by hand."""

from __future__ import annotations

import threading

import pytest

from asvrg.drivers.threads.claims import Claims

pytestmark = pytest.mark.timeout(30)


def claim_later(claims: Claims, worker: int) -> tuple[threading.Thread, list[int]]:
    """A thread that claims, and the list that its answer goes to."""
    answer: list[int] = []
    thread = threading.Thread(target=lambda: answer.append(claims.claim(worker)), daemon=True)
    thread.start()
    thread.join(0.05)
    return thread, answer


def test_windows_are_claimed_until_all_updates_are() -> None:
    claims = Claims(8, 3)
    assert [claims.claim(k) for k in range(4)] == [3, 3, 2, 0]


def test_who_is_too_far_ahead_waits_for_the_oldest_window() -> None:
    """Delta = 3: with updates 0 and 1 in flight, 2 and 3 may be; then 0 must land first."""
    claims = Claims(100, 2, max_delay=3)
    assert [claims.claim(0), claims.claim(1)] == [2, 2]
    claims.land(1, 0, 2, 0.0, 0.0)
    thread, answer = claim_later(claims, 1)
    assert not answer
    claims.land(0, 0, 2, 0.0, 0.0)
    thread.join()
    assert answer == [2]


def test_who_is_alone_never_waits() -> None:
    claims = Claims(100, 7, max_delay=0)
    for _ in range(3):
        assert claims.claim(0) == 7
        claims.land(0, claims.landed.number, 7, 0.0, 0.0)


def test_stop_wakes_who_waits() -> None:
    claims = Claims(100, 1, max_delay=0)
    claims.claim(0)
    thread, answer = claim_later(claims, 1)
    claims.stop()
    thread.join()
    assert answer == [0]
