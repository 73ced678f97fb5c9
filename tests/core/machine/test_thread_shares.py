"""How threads share the processor."""

from __future__ import annotations

import sys

import pytest

from cbir.core.machine import take_turns


def test_threads_of_python_take_turns_ten_times_a_millisecond() -> None:
    before = sys.getswitchinterval()
    try:
        take_turns()
        assert sys.getswitchinterval() == pytest.approx(0.0001)
    finally:
        sys.setswitchinterval(before)
