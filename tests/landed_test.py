"""What landed, as a Trace."""

from __future__ import annotations

import numpy as np

from asvrg import delays
from asvrg.drivers.landed import Landed


def test_the_trace_has_what_landed_in_that_order() -> None:
    landed = Landed(5, scaled=True)
    landed.add(1, 0, number=2, read=0.1, computed=0.2, scale=np.array([1.0, 1.0]))
    landed.add(0, 0, number=2, read=0.1, computed=0.3, scale=np.array([0.5, 0.25]))
    between = landed.now()
    landed.add(1, 2, number=1, read=0.4, computed=0.5, scale=1.0)
    trace = landed.trace(sees_own=True)
    assert trace.worker.tolist() == [1, 1, 0, 0, 1]
    assert trace.read_version.tolist() == [0, 0, 0, 0, 2]
    assert trace.scale is not None
    assert trace.scale.tolist() == [1, 1, 0.5, 0.25, 1]
    assert trace.times is not None
    assert trace.times.computed.tolist() == [0.2, 0.2, 0.3, 0.3, 0.5]
    assert np.sum(trace.times.landed > between) == 1
    assert delays.staleness(trace).tolist() == [0, 0, 2, 3, 2]
