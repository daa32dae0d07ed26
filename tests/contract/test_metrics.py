"""The metrics' names and labels: dashboards and alerts are built on them, so none changes by accident."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.gateways import Gateway, until

MODEL = {"model", "engine"}
BACKEND = {*MODEL, "backend"}
TABLE: dict[str, tuple[str, set[str]]] = {
    "unigate_requests": ("counter", {"model", "endpoint", "code"}),
    "unigate_request_duration_seconds": ("histogram", {"model", "endpoint"}),
    "unigate_time_to_first_token_seconds": ("histogram", MODEL),
    "unigate_inter_chunk_seconds": ("histogram", MODEL),
    "unigate_queue_wait_seconds": ("histogram", MODEL),
    "unigate_gateway_overhead_seconds": ("histogram", {"endpoint"}),
    "unigate_tokens": ("counter", {*MODEL, "kind"}),
    "unigate_requests_in_flight": ("gauge", MODEL),
    "unigate_queue_depth": ("gauge", BACKEND),
    "unigate_leases": ("gauge", BACKEND),
    "unigate_upstream_errors": ("counter", {*MODEL, "kind"}),
    "unigate_template_parity": ("gauge", {*MODEL, "feature"}),
    "unigate_template_parity_samples": ("counter", {"model", "result"}),
    "unigate_retries": ("counter", {"model", "reason"}),
    "unigate_reloads": ("counter", {"result"}),
    "unigate_client_disconnects": ("counter", {"model", "phase"}),
    "unigate_backend_state": ("gauge", {*BACKEND, "state"}),
    "unigate_backend_starts": ("counter", {*BACKEND, "result"}),
    "unigate_backend_failures": ("counter", {*BACKEND, "reason"}),
    "unigate_backend_restarts": ("counter", {*BACKEND, "reason"}),
    "unigate_backend_start_seconds": ("histogram", BACKEND),
    "unigate_contract_info": ("gauge", {"model", "hash"}),
    "unigate_prompt_mode": ("counter", {*MODEL, "mode"}),
    "unigate_swaps": ("counter", {*BACKEND, "how"}),
    "unigate_memory_claimed_bytes": ("gauge", BACKEND),
    "unigate_gpu_memory_bytes": ("gauge", {"gpu", "kind"}),
    "unigate_build": ("gauge", {"version"}),
}
SILENT_UNTIL_IT_HAPPENS = {
    "unigate_template_parity",
    "unigate_template_parity_samples",
    "unigate_upstream_errors",
    "unigate_client_disconnects",
    "unigate_backend_restarts",
    "unigate_backend_failures",
    "unigate_contract_info",
    "unigate_prompt_mode",
    "unigate_swaps",
    "unigate_gpu_memory_bytes",
    "unigate_retries",
    "unigate_reloads",
}
"""Without a failure, a reload or a contract these have no sample, so their labels are proven where it happens."""


def test_names_types_and_labels(gateway: Gateway) -> None:
    """/metrics holds exactly these metrics, each with its type and its labels."""
    body = {"model": "chat", "prompt": "hi", "stream": True}
    assert gateway.ask("POST", "/v1/completions", json=body).status_code == 200
    until(lambda: gateway.metric("unigate_tokens_total", model="chat"))
    found = {}
    for family in text_string_to_metric_families(gateway.ask("GET", "/metrics").text):
        labels = [set(sample.labels) - {"le"} for sample in family.samples]
        found[family.name] = (family.type, *([labels[0]] if labels else []))
        assert all(one == labels[0] for one in labels)
    for name, (kind, labels_wanted) in TABLE.items():
        wanted = (kind, labels_wanted)
        assert found.pop(name) in ([wanted, (kind,)] if name in SILENT_UNTIL_IT_HAPPENS else [wanted])
    assert found == {}


def test_what_clients_invent_is_no_label(gateway: Gateway) -> None:
    """A model nobody configured is counted as _unknown, an alias as its model."""

    def counted(**labels: str) -> float:
        return gateway.metric("unigate_requests_total", endpoint="/v1/completions", **labels)

    unknown, known = counted(model="_unknown", code="404"), counted(model="chat", code="200")
    gateway.ask("POST", "/v1/completions", json={"model": "invented-by-a-client", "prompt": "x"})
    gateway.ask("POST", "/v1/completions", json={"model": "default", "prompt": "x"})
    until(
        lambda: counted(model="_unknown", code="404") == unknown + 1 and counted(model="chat", code="200") == known + 1
    )
    assert "invented-by-a-client" not in gateway.ask("GET", "/metrics").text
    assert {dict(labels).get("model", "chat") for _, labels in gateway.samples()} <= {
        *(model["id"] for model in gateway.ask("GET", "/v1/models").json()["data"]),
        "_unknown",
    }


def test_each_backend_is_in_one_state(gateway: Gateway) -> None:
    """For every model exactly one state's sample is 1."""
    states = {labels: value for (name, labels), value in gateway.samples().items() if name == "unigate_backend_state"}
    for model in ("chat", "cold", "failed"):
        assert sum(value for labels, value in states.items() if ("model", model) in labels) == 1
    assert gateway.metric("unigate_backend_state", model="chat", state="ready") == 1


def test_a_stream_is_measured(gateway: Gateway) -> None:
    """A stream adds to the first-token, gap and overhead histograms of its model."""

    def counts() -> list[float]:
        by_model = ("unigate_time_to_first_token_seconds", "unigate_inter_chunk_seconds", "unigate_queue_wait_seconds")
        own = gateway.metric("unigate_gateway_overhead_seconds_count", endpoint="/v1/completions")
        return [*(gateway.metric(f"{name}_count", model="chat") for name in by_model), own]

    before = counts()
    gateway.ask("POST", "/v1/completions", json={"model": "chat", "prompt": "hi", "stream": True})
    until(lambda: all(now > then for now, then in zip(counts(), before, strict=True)), what="a stream is measured")


def test_it_is_prometheus_text(gateway: Gateway) -> None:
    """/metrics says that it is Prometheus' text format."""
    assert gateway.ask("GET", "/metrics").headers["content-type"].startswith("text/plain; version=")
