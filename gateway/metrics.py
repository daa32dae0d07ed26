"""Metrics: the same set for every engine, each with its unit in its name, labels from the configuration only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from backends.devices import Device
from backends.lifecycle import Event, State
from backends.status import BackendStatus, Transition
from chat_templates.battery import FEATURES
from gateway import __version__
from gateway.observation import STATUS_CLIENT_GONE, Observation

UNKNOWN = "_unknown"
"""The model label of a request that named no configured model: what clients invent must not become a series."""

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
INTER_CHUNK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
OVERHEAD_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
START_S = (1, 2.5, 5, 10, 20, 40, 60, 90, 120, 180, 300, 600, 1200, 1800)

CONTENT_TYPE = CONTENT_TYPE_LATEST.encode()

# A ``_created`` series beside every counter and histogram would double what is scraped, and the text format's parsers
# take it for a gauge of its own. prometheus_client knows only one switch for the whole process.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The gateway's metrics, in a registry of their own. Gauges are read from *statuses* when they are scraped."""

    def __init__(self, statuses: Callable[[], Iterable[BackendStatus]]) -> None:
        self._statuses = statuses
        self.registry = registry = CollectorRegistry()
        model = ("model", "engine")
        backend = (*model, "backend")
        self._known: set[str] = set()
        self._removed: set[str] = set()
        self._requests = Counter(
            "unigate_requests", "Requests answered, by HTTP status; 499: the client left.",
            ("model", "endpoint", "code"), registry=registry,
        )  # fmt: skip
        self._duration = Histogram(
            "unigate_request_duration_seconds", "From a request's head to the end of its answer.",
            ("model", "endpoint"), buckets=LATENCY_S, registry=registry,
        )  # fmt: skip
        self._ttft = Histogram(
            "unigate_time_to_first_token_seconds", "From a request's head to the first non-empty delta of its stream.",
            model, buckets=LATENCY_S, registry=registry,
        )  # fmt: skip
        self._inter_chunk = Histogram(
            "unigate_inter_chunk_seconds", "Between two consecutive pieces of a stream.",
            model, buckets=INTER_CHUNK_S, registry=registry,
        )  # fmt: skip
        self._queue_wait = Histogram(
            "unigate_queue_wait_seconds", "Waiting for a READY backend.",
            model, buckets=(0.001, *LATENCY_S), registry=registry,
        )  # fmt: skip
        self._overhead = Histogram(
            "unigate_gateway_overhead_seconds", "Added to the first byte by the gateway itself: no queue, no engine.",
            ("endpoint",), buckets=OVERHEAD_S, registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "unigate_tokens", "Tokens as the engines count them.", (*model, "kind"), registry=registry
        )
        self._in_flight = Gauge(
            "unigate_requests_in_flight", "Requests being worked on, those that wait included.", model,
            registry=registry,
        )  # fmt: skip
        self._queue_depth = Gauge(
            "unigate_queue_depth", "Requests waiting for a READY backend.", backend, registry=registry
        )
        self._leases = Gauge("unigate_leases", "Exchanges under way with a backend.", backend, registry=registry)
        self._upstream_errors = Counter(
            "unigate_upstream_errors", "Exchanges that failed, by kind.", (*model, "kind"), registry=registry
        )
        self._retries = Counter(
            "unigate_retries", "Requests that moved to another replica before a byte of their answer had come.",
            ("model", "reason"), registry=registry,
        )  # fmt: skip
        self._client_disconnects = Counter(
            "unigate_client_disconnects", "Clients that left, by the phase of their request.", ("model", "phase"),
            registry=registry,
        )  # fmt: skip
        self._backend_state = Gauge(
            "unigate_backend_state", "1 for the state a backend is in, 0 for the others.", (*backend, "state"),
            registry=registry,
        )  # fmt: skip
        self._backend_starts = Counter(
            "unigate_backend_starts", "Starts by how they ended: ready, failed, crashed, timed_out, stopped.",
            (*backend, "result"), registry=registry,
        )  # fmt: skip
        self._backend_failures = Counter(
            "unigate_backend_failures", "Runs that failed, by the code of their diagnosis.",
            (*backend, "reason"), registry=registry,
        )  # fmt: skip
        self._backend_restarts = Counter(
            "unigate_backend_restarts", "Starts after a failure, by the diagnosis of that failure.",
            (*backend, "reason"), registry=registry,
        )  # fmt: skip
        self._backend_start_seconds = Histogram(
            "unigate_backend_start_seconds", "From a start asked for to READY.", backend, buckets=START_S,
            registry=registry,
        )  # fmt: skip
        self._reloads = Counter(
            "unigate_reloads", "Reloads of the configuration, by their result: applied, refused.", ("result",),
            registry=registry,
        )  # fmt: skip
        self._swaps = Counter(
            "unigate_swaps", "Times a backend made room for another: how is stop or sleep.", (*backend, "how"),
            registry=registry,
        )  # fmt: skip
        self._memory_claimed = Gauge(
            "unigate_memory_claimed_bytes", "Memory granted to a backend, on GPUs or of the host.", backend,
            registry=registry,
        )  # fmt: skip
        self._gpu_memory = Gauge(
            "unigate_gpu_memory_bytes", "Memory of a GPU as its driver tells it: kind is used or free.",
            ("gpu", "kind"), registry=registry,
        )  # fmt: skip
        self._contract = Gauge(
            "unigate_contract_info", "1 for the contract that a model is served under; its hash is in the label.",
            ("model", "hash"), registry=registry,
        )  # fmt: skip
        self._parity = Gauge(
            "unigate_template_parity", "1 for a kind of conversation that is proven to get the contract's prompt.",
            (*model, "feature"), registry=registry,
        )  # fmt: skip
        self._samples = Counter(
            "unigate_template_parity_samples", "Served chats whose prompt was compared with the contract's.",
            ("model", "result"), registry=registry,
        )  # fmt: skip
        self._prompt_mode = Counter(
            "unigate_prompt_mode", "Chats under a contract, by who made the prompt: native, tokens, text, unproven.",
            (*model, "mode"), registry=registry,
        )  # fmt: skip
        build = Gauge("unigate_build", "Always 1; the version is in the label.", ("version",), registry=registry)
        build.labels(__version__).set(1)

    def exposition(self, devices: Iterable[Device] = ()) -> bytes:
        """All metrics in the Prometheus text format, with the memory of *devices* as it was just read."""
        for gauge in (self._queue_depth, self._leases, self._backend_state, self._memory_claimed, self._parity):
            gauge.clear()  # of backends that are gone
        self._forget_removed()
        for device in devices:
            if device.is_gpu:
                used = device.total_bytes - device.free_bytes
                self._gpu_memory.labels(str(device.index), "used").set(used)
                self._gpu_memory.labels(str(device.index), "free").set(device.free_bytes)
        statuses = list(self._statuses())
        for (name, engine, feature), is_proven in _parity(statuses).items():
            self._parity.labels(name, engine, feature).set(is_proven)
        for status in statuses:
            labels = (status.model, status.engine, status.name)
            self._queue_depth.labels(*labels).set(status.waiting)
            self._leases.labels(*labels).set(status.leases)
            self._memory_claimed.labels(*labels).set(status.memory_bytes)
            for state in State:
                self._backend_state.labels(*labels, state.value).set(status.state is state)
        return generate_latest(self.registry)

    def in_flight(self, model: str, engine: str) -> Gauge:
        """The gauge to count one request up and down on."""
        return self._in_flight.labels(model, engine)

    def inter_chunk(self, model: str, engine: str) -> Callable[[float], None]:
        """Takes the gap before each piece of a stream but its first, in seconds."""
        return self._inter_chunk.labels(model, engine).observe

    def retried(self, model: str, reason: str) -> None:
        """Count one request that moved to another replica."""
        self._retries.labels(model, reason).inc()

    def reloaded(self, result: str) -> None:
        """Count one reload: ``applied`` or ``refused``."""
        self._reloads.labels(result).inc()

    def sampled(self, model: str, result: str) -> None:
        """Count one served chat whose prompt was compared: ``exact``, ``mismatch`` or ``failed``."""
        self._samples.labels(model, result).inc()

    def contracts(self, hashes: Mapping[str, str]) -> None:
        """The contracts now in force: model -> hash."""
        self._contract.clear()
        for model, digest in hashes.items():
            self._contract.labels(model, digest).set(1)

    def keep_only(self, models: Set[str]) -> None:
        """Export nothing of a model that is not among *models* any more. What is known of the others stays."""
        self._removed = (self._removed | self._known) - models
        self._known = set(models)

    def _forget_removed(self) -> None:
        # At each scrape, because a request that was under way when its model went is counted when it ends.
        by_model = (
            self._requests, self._duration, self._ttft, self._inter_chunk, self._queue_wait, self._tokens,
            self._in_flight, self._upstream_errors, self._retries, self._client_disconnects, self._backend_starts,
            self._backend_failures, self._backend_restarts, self._backend_start_seconds, self._swaps,
            self._prompt_mode,
            self._samples,
        )  # fmt: skip
        for model in self._removed:
            for metric in by_model:
                metric.remove_by_labels({"model": model})

    def account(self, seen: Observation) -> None:
        """Count one request that is over."""
        model, engine = seen.model or UNKNOWN, seen.engine or UNKNOWN
        self._requests.labels(model, seen.endpoint, str(seen.status)).inc()
        self._duration.labels(model, seen.endpoint).observe(seen.duration_s)
        if seen.sent_at is not None or seen.waited_s > 0:
            self._queue_wait.labels(model, engine).observe(seen.waited_s)
        if seen.ttft_s is not None:
            self._ttft.labels(model, engine).observe(seen.ttft_s)
        if seen.overhead_s is not None:
            self._overhead.labels(seen.endpoint).observe(seen.overhead_s)
        if seen.prompt_mode is not None:
            self._prompt_mode.labels(model, engine, seen.prompt_mode).inc()
        for kind, count in (("prompt", seen.prompt_tokens), ("completion", seen.completion_tokens)):
            if count:
                self._tokens.labels(model, engine, kind).inc(count)
        if seen.upstream_error is not None:
            self._upstream_errors.labels(model, engine, seen.upstream_error).inc()
        if seen.status == STATUS_CLIENT_GONE:
            self._client_disconnects.labels(model, seen.phase).inc()

    def transition(self, change: Transition) -> None:
        """Count one change of a backend's state."""
        labels = (change.model, change.engine, change.backend)
        if change.event is Event.BECAME_READY and change.started_in_s is not None:
            self._backend_start_seconds.labels(*labels).observe(change.started_in_s)
        if change.before is State.STARTING:
            self._backend_starts.labels(*labels, _RESULTS[change.event]).inc()
        reason = change.diagnosis.code if change.diagnosis is not None else "unknown"
        if change.event in _FAILURES and change.after is not State.STOPPED:
            self._backend_failures.labels(*labels, reason).inc()
        if change.before is State.YIELDING and change.after in (State.STOPPING, State.SLEEPING):
            self._swaps.labels(*labels, "sleep" if change.after is State.SLEEPING else "stop").inc()
        if change.event is Event.BACKOFF_ELAPSED:
            self._backend_restarts.labels(*labels, reason).inc()


def _parity(statuses: Iterable[BackendStatus]) -> Mapping[tuple[str, str, str], bool]:
    """Whether each feature of each model is proven, which it is where it is on every replica that was asked."""
    proven: dict[tuple[str, str, str], bool] = {}
    for status in statuses:
        if status.parity is not None:
            for feature in FEATURES:
                label = (status.model, status.engine, feature)
                proven[label] = proven.get(label, True) and bool(status.parity.modes.get(feature))
    return proven


_FAILURES = (Event.CRASHED, Event.REJECTED, Event.START_TIMED_OUT, Event.BECAME_UNHEALTHY)

_RESULTS = {
    Event.BECAME_READY: "ready",
    Event.REJECTED: "failed",
    Event.CRASHED: "crashed",
    Event.START_TIMED_OUT: "timed_out",
    Event.STOP_REQUESTED: "stopped",
    Event.YIELD_REQUESTED: "stopped",
}
