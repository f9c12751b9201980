"""An epoch in parts: the search for the update that went wrong."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from asvrg.drivers.simulate.parts import first_true


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(1, 600), st.integers(1, 700))
def test_the_first_number_is_found_in_few_looks(answer: int, most: int) -> None:
    looks = []

    def condition(number: int) -> bool:
        looks.append(number)
        return number >= answer

    assert first_true(condition, most) == (answer if answer <= most else None)
    assert len(looks) <= 1 + most.bit_length()
    assert all(1 <= number <= most for number in looks)


def test_of_no_numbers_there_is_no_first() -> None:
    assert first_true(lambda number: True, 0) is None
