"""How many generations a fake engine has begun, ended, and lost to clients that left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Activity:
    """Counts since the start; *running* returns to 0 when nobody is served."""

    running: int = 0
    started: int = 0
    finished: int = 0
    cancelled: int = 0

    @contextmanager
    def generation(self) -> Iterator[None]:
        """Count one generation; one that is cancelled, because its client left, is not counted as finished."""
        self.running += 1
        self.started += 1
        try:
            yield
        except (asyncio.CancelledError, OSError):
            self.cancelled += 1
            raise
        else:
            self.finished += 1
        finally:
            self.running -= 1

    def as_json(self) -> dict[str, int]:
        """What ``GET /__state`` answers."""
        return {
            "running": self.running,
            "started": self.started,
            "finished": self.finished,
            "cancelled": self.cancelled,
        }

    def as_metrics(self, model: str) -> str:
        """The gauge that vLLM 0.32 calls so, in Prometheus' text format."""
        name = "vllm:num_requests_running"
        return (
            f'# HELP {name} Running requests.\n# TYPE {name} gauge\n{name}{{model_name="{model}"}} {self.running}.0\n'
        )
