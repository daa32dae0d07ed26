"""A run as seen from the gateway: its environment, and an address that is merely attached to."""

from __future__ import annotations

import asyncio

import pytest

from backends.adapter import Call, LaunchSpec, Probe
from backends.address import Address
from backends.diagnosis import ExitStatus
from backends.process import INHERITED_BUT_HARMFUL, Attachment, LocalLauncher, engine_environment

GET = Call("GET", "/")
SPEC = LaunchSpec(
    Address(uds="/run/m.sock"), Probe(GET, GET, ()), ("engine",), env={"ADDED": "1"}, env_removed=("REMOVED",)
)


def test_the_environment_of_an_engine() -> None:
    """Ours, less what harms, what the spec removes and what holds a client's key; plus the spec's and the marker."""
    inherited = {
        "PATH": "/bin",
        "REMOVED": "1",
        "UNIGATE_KEY": "sk-client",
        "ADDED": "ours",
        **dict.fromkeys(INHERITED_BUT_HARMFUL, "1"),
    }
    assert engine_environment(inherited, SPEC, "m:1", frozenset({"sk-client"})) == {
        "PATH": "/bin",
        "ADDED": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "UNIGATE_BACKEND_ID": "m:1",
        "SPT_NOENV": "1",
    }


def test_the_marker_cannot_be_overwritten() -> None:
    """Neither what we inherit nor the operator's env replaces the marker."""
    spec = LaunchSpec(SPEC.address, SPEC.probe, SPEC.argv, env={"UNIGATE_BACKEND_ID": "x", "SPT_NOENV": ""})
    environment = engine_environment({"UNIGATE_BACKEND_ID": "outer:1"}, spec, "m:1")
    assert environment["UNIGATE_BACKEND_ID"] == "m:1"
    assert environment["SPT_NOENV"] == "1"


@pytest.mark.parametrize("word", ["terminate", "kill"])
async def test_an_attachment_ends_when_told_to(word: str) -> None:
    """An address we do not own is let go of at once, for everyone who waits."""
    spec = LaunchSpec(SPEC.address, SPEC.probe)
    run = await LocalLauncher().start(spec, "m:1", lambda _: None)
    assert isinstance(run, Attachment)
    assert (run.pid, run.session, run.bytes_read()) == (None, 0, 0)
    waiting = [asyncio.create_task(run.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    getattr(run, word)()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiting) == [ExitStatus(code=0)] * 2
