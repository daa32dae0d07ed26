"""What an engine or a gateway says of itself at ``/metrics``: how much is running and waiting, and how full it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Sample = dict[str, float]
"""``running``, ``waiting``, ``kv`` (0..1), ``finished``: those that were there."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The names one kind of server uses for the same things; empty where it has none.

    ``finished`` counts answers since the server began. ``model_label``: the label that tells models apart; where it
    is set only the run's own model is looked at, for a gateway's other models are not other tenants of this one's
    engine. ``refresh_s``: how old a value may be.
    """

    name: str
    running: str
    waiting: str
    kv: str = ""
    finished: str = ""
    model_label: str = ""
    refresh_s: float = 0.0
    counts_waiting_as_running: bool = False


DIALECTS = (
    # vllm/v1/metrics/loggers.py, 0.32.0; prometheus_client adds _total to a counter
    Dialect(
        "vllm",
        running="vllm:num_requests_running",
        waiting="vllm:num_requests_waiting",
        kv="vllm:kv_cache_usage_perc",
        finished="vllm:request_success_total",
        refresh_s=1.0,
    ),
    # lmdeploy/metrics/loggers.py, 0.18.0; its loop refreshes the gauges every 10 s
    Dialect(
        "lmdeploy",
        running="lmdeploy:num_requests_running",
        waiting="lmdeploy:num_requests_waiting",
        kv="lmdeploy:gpu_cache_usage_perc",
        finished="lmdeploy:request_success_total",
        refresh_s=10.0,
    ),
    # llama.cpp tools/server/server-context.cpp (the names are in the embedded server of xllamacpp 2026.10.11549 too)
    Dialect("llamacpp", running="llamacpp:requests_processing", waiting="llamacpp:requests_deferred"),
    Dialect(
        "unigate",
        running="unigate_requests_in_flight",
        waiting="unigate_queue_depth",
        finished="unigate_requests_total",
        model_label="model",
        counts_waiting_as_running=True,
    ),
)

_SAMPLE = re.compile(r"^([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})?\s+(\S+)", re.MULTILINE)
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]|\\.)*)"')


def read_samples(text: str, model: str) -> dict[str, Sample]:
    """What *text* (Prometheus exposition) says, by the name of the dialect it is in; several may be in one text."""
    prefixes = ("vllm:", "lmdeploy:", "llamacpp:", "unigate_")
    wanted = {}
    for dialect in DIALECTS:
        for quantity in ("running", "waiting", "kv", "finished"):
            metric = getattr(dialect, quantity)
            if metric:
                wanted[metric] = (dialect, quantity)
    found: dict[str, Sample] = {}
    for line in text.splitlines():
        if not line.startswith(prefixes):
            continue
        match = _SAMPLE.match(line)
        if match is None or match[1] not in wanted:
            continue
        dialect, quantity = wanted[match[1]]
        if dialect.model_label and dict(_LABEL.findall(match[2] or "")).get(dialect.model_label) != model:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if value != value:  # NaN: not known
            continue
        sample = found.setdefault(dialect.name, {})
        # engines of a data-parallel server each have a line: what is counted adds up, the fullest cache is what matters
        sample[quantity] = (
            max(sample.get(quantity, 0.0), value) if quantity == "kv" else sample.get(quantity, 0) + value
        )
    return found


def dialect_named(name: str) -> Dialect:
    """The dialect called *name*. Raises KeyError."""
    return {known.name: known for known in DIALECTS}[name]


def under_way(dialect: Dialect, sample: Mapping[str, float]) -> float | None:
    """Requests running and waiting; None if the server does not say."""
    if "running" not in sample:
        return None
    waiting = 0.0 if dialect.counts_waiting_as_running else sample.get("waiting", 0.0)
    return sample["running"] + waiting
