"""How long a crashed backend waits, and when we stop trying."""

from __future__ import annotations

import pytest

from backends.backoff import JITTER, Attempts, after_failure, retry_delay_s
from backends.settings import Timing

TIMING = Timing()
UNSPREAD = 0.5
"""The chance at which the jitter is nought."""


@pytest.mark.parametrize(
    ("crashes", "delay_s"), [(0, 10), (1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 300), (7, 300), (5000, 300)]
)
def test_the_delay_doubles_up_to_its_limit(crashes: int, delay_s: float) -> None:
    """``min(10 * 2**n, 300)``, however many crashes there were."""
    assert retry_delay_s(Attempts(crashes), TIMING, UNSPREAD) == pytest.approx(delay_s)


@pytest.mark.parametrize("crashes", [1, 3, 9])
def test_the_jitter_has_bounds(crashes: int) -> None:
    """The delay lies within JITTER of its middle, from chance 0 up to just below 1."""
    middle = retry_delay_s(Attempts(crashes), TIMING, UNSPREAD)
    least = retry_delay_s(Attempts(crashes), TIMING, 0.0)
    most = retry_delay_s(Attempts(crashes), TIMING, 0.999999)
    assert middle is not None
    assert least == pytest.approx(middle * (1 - JITTER))
    assert most is not None
    assert middle * 1.19 < most < middle * (1 + JITTER)


def test_failed_starts_end_in_giving_up() -> None:
    """After max_failed_starts in a row there is no next start; one fewer, there is."""
    attempts = Attempts()
    for _ in range(TIMING.max_failed_starts - 1):
        attempts = after_failure(attempts, TIMING, ready_for_s=None)
        assert retry_delay_s(attempts, TIMING, UNSPREAD) is not None
    assert retry_delay_s(after_failure(attempts, TIMING, ready_for_s=None), TIMING, UNSPREAD) is None


def test_a_crash_after_ready_never_gives_up() -> None:
    """A backend that gets READY and crashes soon is tried for ever, ever more slowly."""
    attempts = Attempts()
    for _ in range(50):
        attempts = after_failure(attempts, TIMING, ready_for_s=1.0)
    assert attempts == Attempts(crashes=50, failed_starts=0)
    assert retry_delay_s(attempts, TIMING, UNSPREAD) == pytest.approx(300)


def test_a_short_ready_clears_the_failed_starts_only() -> None:
    """READY for a moment: the count of failed starts begins anew, the delay goes on growing."""
    assert after_failure(Attempts(4, 4), TIMING, ready_for_s=1.0) == Attempts(5, 0)


def test_a_long_ready_clears_everything() -> None:
    """READY for backoff_reset_s: the crash that follows counts as the first."""
    assert after_failure(Attempts(9, 0), TIMING, ready_for_s=TIMING.backoff_reset_s) == Attempts(1, 0)
