"""One request as one value and one log line."""

from __future__ import annotations

from gateway.observation import STATUS_CLIENT_GONE, Observation, log_line


def observation() -> Observation:
    """A whole streamed answer, by the clock of a second that began at 100."""
    return Observation(
        request_id="req-1",
        endpoint="/v1/completions",
        received_at=100.0,
        caller="me",
        model="qwen",
        engine="vllm",
        is_stream=True,
        status=200,
        phase="done",
        waited_s=0.25,
        sent_at=100.26,
        first_byte_at=100.5,
        relayed_at=100.502,
        first_token_at=100.6,
        ended_at=101.0,
        prompt_tokens=7,
        completion_tokens=3,
    )


def test_durations() -> None:
    """Duration and first token count from the request's head; overhead leaves out the queue and the engine."""
    seen = observation()
    assert seen.duration_s == 1.0
    assert seen.ttft_s is not None
    assert round(seen.ttft_s, 6) == 0.6
    assert seen.overhead_s is not None
    assert round(seen.overhead_s, 6) == 0.012


def test_what_never_happened_has_no_duration() -> None:
    """A request refused at the door has neither first token nor overhead."""
    seen = Observation("req-1", "/v1/completions", 100.0)
    assert (seen.ttft_s, seen.overhead_s) == (None, None)


def test_the_line_of_a_whole_answer() -> None:
    """The log line holds who, what, how long and how many, and nothing else."""
    assert log_line(observation()) == (
        "id=req-1 key=me endpoint=/v1/completions model=qwen engine=vllm stream=true status=200 ms=1000.0 "
        "queue_ms=250.0 ttft_ms=600.0 overhead_ms=12.00 prompt_tokens=7 completion_tokens=3"
    )


def test_the_line_of_a_refusal() -> None:
    """A refused request shows its error, and a dash for what it never reached."""
    seen = Observation("req-1", "/v1/completions", 100.0, status=404, error="model_not_found", ended_at=100.001)
    assert log_line(seen) == (
        "id=req-1 key=- endpoint=/v1/completions model=- engine=- stream=false status=404 ms=1.0 error=model_not_found"
    )


def test_the_line_of_a_client_that_left() -> None:
    """A client that left shows in which phase."""
    seen = Observation("req-1", "/v1/completions", 100.0, status=STATUS_CLIENT_GONE, phase="lease", ended_at=101.0)
    assert log_line(seen).endswith("status=499 ms=1000.0 left_in=lease")


def test_a_value_cannot_break_the_line() -> None:
    """Names with spaces, quotes or line breaks are quoted: one request stays one line of key=value."""
    for name in ("my model", 'a"b', "a=b", "a\nb", "a\x1b[31m"):
        seen = observation()
        seen.model = name
        line = log_line(seen)
        assert f"model={name!r} " in line
        assert line.isprintable()
