"""Sending: what becomes of every request, in an open and in a closed loop."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.load.connection import read_address
from benchmarks.load.driver import Limits
from benchmarks.records import Row
from benchmarks.timed_server import CUT, ERROR_EVENT, NO_FINISH
from tests.unit.benchmarks.serving import drive, driver, questions, raw_server, timed_server, until


async def test_every_request_becomes_a_row() -> None:
    """A closed loop asks everything, with so many under way, and each row is whole."""
    async with timed_server() as (server, url):
        rows = await drive(url, questions(20), concurrency=3)
    assert sorted(row.index for row in rows) == list(range(20))
    assert max(row.in_flight for row in rows) == 3
    assert server.started == 20
    for row in rows:
        assert row.is_good, row.error_text
        assert (row.output_tokens, row.prompt_tokens, row.finish_reason, row.text) == (4, 3, "length", "word " * 4)
        assert row.intended <= row.sent <= row.first_byte <= row.first_token <= row.last_chunk <= row.end  # type: ignore[operator]


async def test_connections_are_kept_alive() -> None:
    """Only as many connections are opened as requests are under way."""
    async with timed_server() as (_, url):
        rows = await drive(url, questions(20), concurrency=2)
    assert sum(row.connected is not None for row in rows) == 2


async def test_an_open_loop_sends_at_its_times_whatever_the_server_does() -> None:
    """Requests go out by the schedule although no answer has come yet."""
    async with timed_server(ttft_s=0.2) as (_, url):
        rows = await drive(url, questions(5), times=[0.0, 0.01, 0.02, 0.03, 0.04])
    assert [row.intended for row in sorted(rows, key=lambda row: row.index)] == [0.0, 0.01, 0.02, 0.03, 0.04]
    assert max(row.in_flight for row in rows) == 5
    assert all(row.lag >= 0 for row in rows)


async def test_room_limits_an_open_loop_and_is_not_called_lag() -> None:
    """With one under way at most the others are held back, and the time is theirs from when they were intended."""
    async with timed_server(ttft_s=0.05) as (_, url):
        rows = await drive(url, questions(3), times=[0.0, 0.001, 0.002], concurrency=1)
    assert max(row.in_flight for row in rows) == 1
    last = max(rows, key=lambda row: row.index)
    assert last.held > 0.08
    assert last.lag < last.held


async def test_a_conversation_goes_on_with_the_servers_own_answers() -> None:
    """The second question carries the first one and its answer, and is asked once that has come."""
    async with timed_server() as (_, url):
        rows = await drive(url, questions(2, turns=3), concurrency=2)
    told = {(row.index, row.turn): row for row in rows}
    assert len(told) == 6
    assert [told[0, turn].prompt_tokens for turn in range(3)] == [3, 3 + 4 + 3, 3 + 4 + 3 + 4 + 3]
    assert told[0, 0].end <= told[0, 1].sent
    assert [told[0, turn].is_last_turn for turn in range(3)] == [False, False, True]


async def test_a_failed_turn_ends_its_conversation() -> None:
    """Nobody asks on after a failure."""
    async with timed_server(fail_every=1) as (_, url):
        rows = await drive(url, questions(2, turns=3), concurrency=1)
    assert [(row.turn, row.error_kind) for row in rows] == [(0, "stream_error")] * 2


@pytest.mark.parametrize(
    ("failure", "kind"), [(CUT, "connection"), (ERROR_EVENT, "stream_error"), (NO_FINISH, "no_finish_reason")]
)
async def test_a_failure_in_the_middle_of_a_stream_is_a_row(failure: str, kind: str) -> None:
    """Every third answer breaks after half its words: every third row says so, and how."""
    async with timed_server(fail_every=3, failure=failure) as (_, url):
        rows = await drive(url, questions(9), concurrency=1)
    assert [row.error_kind for row in rows] == [None, None, kind] * 3
    assert len(rows[2].token_us) == 2


async def test_a_whole_answer_is_read_too() -> None:
    """Without streaming there is an end, a usage and no first token."""
    async with timed_server() as (_, url):
        (row,) = await drive(url, questions(1), concurrency=1, form={"is_streamed": False, "endpoint": "completions"})
    assert (row.is_good, row.first_token, row.output_tokens, row.token_us) == (True, None, 4, ())


async def test_a_forced_length_that_is_not_kept_is_a_failure() -> None:
    """Whoever forces a length compares at that length: an answer of another one is none."""
    async with timed_server(miscounts=1) as (_, url):
        (row,) = await drive(url, questions(1), concurrency=1, form={"ignore_eos": True})
    assert (row.error_kind, row.error_text) == (
        "unexpected_finish",
        "asked for exactly 4 tokens, came 5 with finish_reason length",
    )


async def test_a_server_that_is_not_there_fails_every_request() -> None:
    """A refused connection is a failure of each request, and the run ends."""
    async with timed_server() as (_, url):
        pass
    rows = await drive(url, questions(3), concurrency=1)
    assert [row.error_kind for row in rows] == ["connection"] * 3


def answering(answer: bytes, *, closes: bool = False) -> Any:
    """What says *answer* to every request, or to one per connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(answer)
            await reader.read(65536)
            if closes:
                return

    return serve


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "garbage"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", "no_finish_reason"),
        (b'HTTP/1.1 200 OK\r\ncontent-length: 27\r\n\r\ndata: {"choices":[[1,2]]}\n\n', "garbage"),
        (b"HTTP/1.1 503 Full\r\ncontent-length: 4\r\n\r\nfull", "http"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"x" * 70_000, "garbage"),
    ],
)
async def test_whatever_a_server_says_is_a_row(answer: bytes, kind: str) -> None:
    """What is not HTTP, not JSON, not OpenAI's, or a refusal: each request gets its row and the run ends."""
    async with raw_server(answering(answer)) as url:
        rows = await drive(url, questions(2), concurrency=1)
    assert [row.error_kind for row in rows] == [kind, kind]


@pytest.mark.parametrize(
    ("limits", "text"),
    [(Limits(idle_s=0.15), "nothing was heard for 0.15 s"), (Limits(total_s=0.15), "not over after 0.15 s")],
)
async def test_a_silent_server_is_a_timeout(limits: Limits, text: str) -> None:
    """Nothing waits for ever; what was too long is said."""
    async with timed_server(ttft_s=30.0) as (_, url):
        (row,) = await drive(url, questions(1), concurrency=1, limits=limits)
    assert (row.error_kind, row.error_text) == ("timeout", text)


def cutting(served: int) -> Any:
    """What answers *served* requests per connection, takes one more and cuts."""
    body = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(served):
            await reader.readuntil(b"\r\n\r\n")
            await reader.read(65536)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    return serve


async def test_a_connection_that_was_closed_while_idle_is_no_failure() -> None:
    """A server may close what is idle at the moment we take it: the request goes out again on a new one."""
    async with raw_server(cutting(served=1)) as url:
        rows = await drive(url, questions(4), concurrency=1, form={"is_streamed": False})
    assert [row.error_kind for row in rows] == [None] * 4
    assert [row.connected is not None for row in rows] == [True] * 4


async def test_a_kept_connection_that_is_cut_later_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that dies over a request has failed it, and is not asked the same again."""
    monkeypatch.setattr("benchmarks.load.connection.RACE_S", 0.0)
    async with raw_server(cutting(served=1)) as url:
        rows = await drive(url, questions(2), concurrency=1, form={"is_streamed": False})
    assert [row.error_kind for row in rows] == [None, "connection"]
    assert rows[1].error_text == "the connection was closed without an answer"


async def test_a_second_answer_is_not_the_next_requests() -> None:
    """What a server sends beyond its answer is nobody's, and the connection is not used again."""
    body = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
    other = b'{"choices":[{"message":{"content":"b"},"finish_reason":"stop"}]}'
    twice = b"".join(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(one), one) for one in (body, other))
    async with raw_server(answering(twice)) as url:
        rows = await drive(url, questions(2), concurrency=1, form={"is_streamed": False})
    assert [row.text for row in rows] == ["a", "a"]
    assert [row.connected is not None for row in rows] == [True, True]


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    """HTTP/1.0 servers and some proxies end an answer by closing."""
    body = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
    async with raw_server(answering(b"HTTP/1.1 200 OK\r\n\r\n" + body, closes=True)) as url:
        rows = await drive(url, questions(2), concurrency=1, form={"is_streamed": False})
    assert [row.error_kind for row in rows] == [None, None]


async def test_stopping_gives_up_what_is_under_way_without_a_row() -> None:
    """An interrupted request is no failure of the server: it leaves no row and is sent again another time."""
    async with timed_server(ttft_s=30.0) as (server, url), driver(url, questions(5), concurrency=2) as (driving, rows):
        running = asyncio.create_task(driving.run())
        await until(lambda: server.running == 2)
        driving.stop()
        await running
        await until(lambda: server.running == 0)
    assert rows == []


async def test_a_load_that_was_stopped_before_it_began_sends_nothing() -> None:
    """An interruption between preparing and sending is obeyed too."""
    async with timed_server() as (server, url), driver(url, questions(5), concurrency=2) as (driving, rows):
        driving.stop()
        await driving.run()
    assert (rows, server.started) == ([], 0)


async def test_a_row_that_cannot_be_written_ends_the_run() -> None:
    """A full disk is not a number: the run ends with its reason."""

    def record(row: Row) -> None:
        raise BenchmarkError("no space left on device")

    async with timed_server() as (_, url), driver(url, questions(5), concurrency=1, record=record) as (driving, _):
        with pytest.raises(BenchmarkError, match="no space"):
            await driving.run()


async def test_a_closed_loop_can_begin_slowly() -> None:
    """With a ramp of S seconds the k-th of C begins after k/C of them."""
    async with timed_server(ttft_s=0.3) as (_, url):
        rows = await drive(url, questions(4), concurrency=4, ramp_s=0.2)
    assert [row.sent + 0.002 >= 0.05 * row.index for row in rows] == [True] * 4


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("127.0.0.1:8000", "not an address"),
        ("ftp://x/v1", "not an address"),
        ("http://x:99999/v1", "Port out of range"),
        ("http://me:secret@x/v1", "a key goes into the environment"),
    ],
)
def test_an_address_that_is_none_is_told(url: str, problem: str) -> None:
    """A base URL is checked before anything is sent, and a password in it is not repeated."""
    with pytest.raises(BenchmarkError, match=problem) as told:
        read_address(url)
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h/v1/", ("h", 80, "/v1", "h", "http://h")),
        ("https://h:8443", ("h", 8443, "", "h:8443", "https://h:8443")),
        ("http://[::1]:80/v1", ("::1", 80, "/v1", "[::1]", "http://[::1]")),
    ],
)
def test_an_address_is_what_a_url_says(url: str, expected: tuple[Any, ...]) -> None:
    """Ports by scheme, no slash at the end, brackets around IPv6."""
    address = read_address(url)
    assert (address.host, address.port, address.path, address.authority, address.origin) == expected


async def test_the_clock_of_a_row_begins_before_the_connection() -> None:
    """Connecting is part of the latency: a new connection is there after the request was handed over."""
    async with timed_server() as (_, url):
        before = time.perf_counter()
        (row,) = await drive(url, questions(1), concurrency=1)
        assert row.connected is not None
        assert 0 <= row.sent <= row.connected <= row.end <= time.perf_counter() - before
