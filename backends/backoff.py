"""How long a crashed backend waits before it is tried again, and when we stop trying."""

from __future__ import annotations

from dataclasses import dataclass

from backends.settings import Timing

JITTER = 0.2
"""Retries are spread by up to this share either way, so that backends felled together do not return together."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """What is remembered of a backend's recent failures: *crashes* set the delay, *failed_starts* the end."""

    crashes: int = 0
    failed_starts: int = 0


def after_failure(attempts: Attempts, timing: Timing, ready_for_s: float | None) -> Attempts:
    """The record after one more failure. *ready_for_s* is how long it had been READY, None when it never got there."""
    if ready_for_s is None:
        return Attempts(attempts.crashes + 1, attempts.failed_starts + 1)
    if ready_for_s >= timing.backoff_reset_s:
        return Attempts(crashes=1)
    return Attempts(attempts.crashes + 1)


def retry_delay_s(attempts: Attempts, timing: Timing, chance: float) -> float | None:
    """Seconds until the next start, None when it is time to give up.

    ``min(base * 2**n, max)`` with *n* counting from 0 at the first crash, times 1 ± JITTER. *chance* is in [0, 1).
    """
    if attempts.failed_starts >= timing.max_failed_starts:
        return None
    exponent = min(max(attempts.crashes - 1, 0), 32)
    delay_s: float = min(timing.backoff_base_s * 2**exponent, timing.backoff_max_s)
    return delay_s * (1 + JITTER * (2 * chance - 1))
