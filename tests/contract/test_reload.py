"""Changing the configuration of a gateway that serves: what is started anew, what goes on, what is refused."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import AsyncOpenAI

from chat_templates.contract import Contract
from chat_templates.contract_file import write_contract
from tests.gateways import START_S, Gateway, fake_model, running_gateway, until

CHAT = "/v1/chat/completions"
SLOW = ("chunk-interval=0.1", "chunks=15")


def rewrite(gateway: Gateway, models: Mapping[str, Any] | None = None, **settings: Any) -> None:
    """Put other *models* and other keys of the gateway into the file, as an editor does: by a rename."""
    document = yaml.safe_load(gateway.config.read_text())
    document["gateway"].update(settings)
    if models is not None:
        document["models"] = {name: dict(model) for name, model in models.items()}
    partial = gateway.config.with_suffix(".new")
    partial.write_text(yaml.safe_dump(document, sort_keys=False))
    partial.replace(gateway.config)


def reload(gateway: Gateway, wait_s: float = START_S) -> dict[str, Any]:
    """Reload, and wait until it is complete."""
    answer = gateway.ask("POST", "/admin/reload", params={"wait_s": wait_s}, timeout=wait_s + 5)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["is_complete"] or not wait_s, found
    return found


def pids(gateway: Gateway) -> dict[str, int]:
    """The engine process of each backend."""
    return {status["name"]: status["pid"] for status in gateway.ask("GET", "/admin/backends").json()}


@asynccontextmanager
async def streaming(client: AsyncOpenAI, model: str, count: int) -> AsyncIterator[list[asyncio.Task[str]]]:
    """*count* streams that have begun; their texts, awaited at the end."""
    begun = [await client.completions.create(model=model, prompt=str(one), stream=True) for one in range(count)]
    firsts = [(await anext(stream)).choices[0].text for stream in begun]

    async def rest(first: str, stream: Any) -> str:
        return first + "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

    texts = [asyncio.create_task(rest(*pair)) for pair in zip(firsts, begun, strict=True)]
    yield texts
    await asyncio.gather(*texts)


WHOLE = "".join(f"word{number} " for number in range(15))


async def test_only_what_changed_is_started_anew(tmp_path: Path) -> None:
    """A changed model gets a new engine after its stream has finished, those who ask meanwhile wait for it; an
    unchanged one keeps its process; a new one comes; a removed one finishes its stream and is unknown at once."""
    same, gone = fake_model(tmp_path), fake_model(tmp_path, *SLOW)
    models = {"same": same, "changed": fake_model(tmp_path, *SLOW), "gone": gone}
    with running_gateway(tmp_path, models) as gateway:
        before = pids(gateway)
        async with gateway.async_openai() as client:
            async with streaming(client, "changed", 2) as changed, streaming(client, "gone", 2) as left:
                changed_model = fake_model(tmp_path, *SLOW, context_length=2048)
                rewrite(gateway, {"same": same, "changed": changed_model, "new": fake_model(tmp_path)})
                found = await asyncio.to_thread(reload, gateway, 0)
                assert found["restarted"] == ["changed"]
                assert (found["added"], found["removed"], found["unchanged"]) == (["new"], ["gone"], ["same"])
                refused = await asyncio.to_thread(gateway.ask, "POST", CHAT, json={"model": "gone", "messages": []})
                assert refused.status_code == 404
                waited = await client.completions.create(model="changed", prompt="meanwhile")
                assert waited.choices[0].text == WHOLE
            assert {text.result() for text in (*changed, *left)} == {WHOLE}
        until(lambda: "gone" not in pids(gateway), what="the removed backend is gone")
        gateway.until_state("new", "ready")
        after = pids(gateway)
        assert after["same"] == before["same"]
        assert after["changed"] != before["changed"]
        assert list(after) == ["same", "changed", "new"]
        assert 'model="gone"' not in gateway.ask("GET", "/metrics").text
        assert gateway.metric("unigate_requests_total", model="changed", code="200") == 3
        assert gateway.metric("unigate_reloads_total", result="applied") == 1
        assert [model["id"] for model in gateway.ask("GET", "/v1/models").json()["data"]] == ["same", "changed", "new"]


async def test_replicas_are_rolled(tmp_path: Path) -> None:
    """Replicas are exchanged one at a time: every stream is whole, every request in between is answered, and the model
    is ready all the time."""
    model = fake_model(tmp_path, *SLOW, replicas=2)
    with running_gateway(tmp_path, {"m": model}) as gateway:
        for name in ("m#1", "m#2"):
            gateway.until_state(name, "ready")
        before = pids(gateway)
        async with gateway.async_openai() as client:
            async with streaming(client, "m", 6) as texts:
                rewrite(gateway, {"m": {**model, "context_length": 2048}})
                await asyncio.to_thread(reload, gateway, 0)
                rolling = asyncio.create_task(asyncio.to_thread(_until_all_new, gateway, before))
                readiness = set()
                while not rolling.done():
                    answer = await client.completions.create(model="m", prompt="in between", user="one")
                    assert answer.choices[0].text == WHOLE
                    readiness.add((await asyncio.to_thread(gateway.ask, "GET", "/ready")).status_code)
                await rolling
            assert [text.result() for text in texts] == [WHOLE] * 6
        assert readiness == {200}


def _until_all_new(gateway: Gateway, before: dict[str, int]) -> None:
    def all_new() -> bool:
        now = {one["name"]: one for one in gateway.ask("GET", "/admin/backends").json()}
        return all(now[name]["state"] == "ready" and now[name]["pid"] != pid for name, pid in before.items())

    until(all_new, START_S, "every replica is new")


def test_one_becomes_two_and_two_one(tmp_path: Path) -> None:
    """A model is scaled without ever being without a backend, and nothing of the old ones is left."""
    model = fake_model(tmp_path)
    with running_gateway(tmp_path, {"m": model}) as gateway:
        rewrite(gateway, {"m": {**model, "replicas": 2}})
        found = reload(gateway)
        assert (sorted(found["added"]), found["removed"]) == (["m#1", "m#2"], ["m"])
        assert found["states"] == {"m#1": "ready", "m#2": "ready"}
        assert list(pids(gateway)) == ["m#1", "m#2"]
        kept = pids(gateway)["m#2"]
        rewrite(gateway, {"m": {**model, "replicas": 3}})
        reload(gateway)
        assert pids(gateway)["m#2"] == kept
        rewrite(gateway, {"m": model})
        reload(gateway)
        assert list(pids(gateway)) == ["m"]
        assert {marker.partition(":")[0] for marker in gateway.processes().values()} == {"m"}


def test_a_roll_stops_at_the_first_that_fails(tmp_path: Path) -> None:
    """When a replica does not come up with its new settings, the other keeps serving with the old ones; the next
    reload goes on from there."""
    model = fake_model(tmp_path, replicas=2)
    last_words = tmp_path / "last-words.txt"
    last_words.write_text("error: unrecognized arguments: --no-such-option\n")
    with running_gateway(tmp_path, {"m": model}) as gateway:
        for name in ("m#1", "m#2"):
            gateway.until_state(name, "ready")
        before = pids(gateway)
        rewrite(gateway, {"m": fake_model(tmp_path, f"stderr={last_words}", "exit-during-start=2", replicas=2)})
        done = gateway.command("reload", "--wait", "20")
        assert done.returncode == 1
        assert gateway.backend("m#1")["state"] == "failed"
        assert pids(gateway)["m#2"] == before["m#2"]
        answer = gateway.ask("POST", "/v1/completions", json={"model": "m", "prompt": "x"})
        assert answer.headers["x-unigate-backend"] == "m#2"
        gateway.until_logged("m#1 did not come up")
        rewrite(gateway, {"m": model})
        assert reload(gateway)["restarted"] == ["m#1"]
        assert gateway.backend("m#1")["state"] == "ready"
        assert pids(gateway)["m#2"] == before["m#2"]


def test_keys_limits_and_aliases_restart_nothing(tmp_path: Path) -> None:
    """Another key, limit, alias or clock holds from the next request on, and no engine notices; what cannot change
    while it runs is named, and named again."""
    model = fake_model(tmp_path)
    keys = [{"name": "me", "key": "${FIRST}"}]
    environ = {"FIRST": "sk-first", "SECOND": "sk-second", "UNIGATE_ADMIN_KEY": ""}
    body = {"model": "other-name", "prompt": "x"}
    with running_gateway(tmp_path, {"m": model}, settings={"keys": keys}, environ=environ) as gateway:
        before = pids(gateway)
        headers = {"authorization": "Bearer sk-second"}
        assert gateway.ask("POST", "/v1/completions", json=body, headers=headers).status_code == 401
        changed = {**model, "aliases": ["other-name"], "idle_unload_s": 3600, "drain_timeout_s": 5}
        rewrite(gateway, {"m": changed}, keys=[{"name": "me", "key": "${SECOND}"}], body_limit_bytes=1024, log_keep=1)
        found = reload(gateway)
        assert (found["adjusted"], found["restarted"], found["unchanged"]) == (["m"], [], [])
        assert found["gateway"] == {"applied": ["keys", "body_limit_bytes"], "needs_restart": ["log_keep"]}
        assert gateway.ask("POST", "/v1/completions", json=body, headers=headers).status_code == 200
        long = {**body, "prompt": "x" * 2000}
        assert gateway.ask("POST", "/v1/completions", json=long, headers=headers).status_code == 413
        old = {"authorization": "Bearer sk-first"}
        assert gateway.ask("POST", "/v1/completions", json=body, headers=old).status_code == 401
        assert pids(gateway) == before
        again = reload(gateway)
        assert (again["unchanged"], again["gateway"]) == (["m"], {"applied": [], "needs_restart": ["log_keep"]})
        shown = gateway.command("reload").stdout
        assert "not applied until the gateway is restarted: gateway.log_keep" in shown


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weigths": "x"}, ("unknown key", "did you mean")),
        ({"weights": "/nowhere/at/all"}, ("/nowhere/at/all", "correct models.m.weights")),
    ],
)
def test_a_file_with_problems_changes_nothing(tmp_path: Path, change: dict[str, Any], words: tuple[str, ...]) -> None:
    """What `unigate check` refuses, a reload refuses in the same words, with all there is to say, and serves on."""
    model = fake_model(tmp_path)
    with running_gateway(tmp_path, {"m": model}) as gateway:
        before = pids(gateway)
        rewrite(gateway, {"m": {**model, **change}, "n": fake_model(tmp_path)}, access_log=False)
        refused = gateway.ask("POST", "/admin/reload")
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["code"] == "config_refused"
        assert all(word in error["message"] for word in words)
        assert error["message"] in gateway.command("check", "--no-versions", "-c", str(gateway.config)).stderr
        gateway.signal(signal.SIGHUP)
        gateway.until_logged("the configuration was not reloaded, nothing is changed")
        assert pids(gateway) == before
        assert gateway.ask("POST", "/v1/completions", json={"model": "m", "prompt": "x"}).status_code == 200
        gateway.until_logged("endpoint=/v1/completions")
        until(lambda: gateway.metric("unigate_reloads_total", result="refused") == 2)


def test_the_last_key_of_an_open_gateway_stays(tmp_path: Path) -> None:
    """A file that would leave the gateway open to the network, because its address cannot change now, is refused."""
    keys = [{"name": "me", "key": "sk-secret", "admin": True}]
    with running_gateway(tmp_path, {"m": fake_model(tmp_path)}, settings={"host": "0.0.0.0", "keys": keys}) as gateway:
        rewrite(gateway, keys=[], host="127.0.0.1")
        refused = gateway.ask("POST", "/admin/reload")
        assert refused.status_code == 400
        assert "goes on listening on 0.0.0.0" in refused.text
        answer = gateway.ask("POST", "/v1/completions", json={"model": "m", "prompt": "x"})
        assert answer.status_code == 401


def test_an_edited_template_restarts_its_model(tmp_path: Path) -> None:
    """A template file with another content is another setting, though its name is the same."""
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}")
    model = fake_model(tmp_path, template={"from": str(template)})
    with running_gateway(tmp_path, {"m": model, "n": fake_model(tmp_path)}) as gateway:
        assert reload(gateway)["unchanged"] == ["m", "n"]
        template.write_text("{{ messages[-1].content }}")
        found = reload(gateway)
        assert (found["restarted"], found["unchanged"]) == (["m"], ["n"])


def test_a_contract_is_compared_by_what_it_says(tmp_path: Path) -> None:
    """Another contract under the same name restarts its model, the same one written anew does not, a bad one is
    refused and changes nothing."""
    contract = Contract("c", {"default": "{{ messages[0].content }}"}, "here")
    file = write_contract(contract, tmp_path)
    said = {"contract": str(file), "parity": "off"}
    with running_gateway(tmp_path, {"m": fake_model(tmp_path, template=said), "n": fake_model(tmp_path)}) as gateway:
        write_contract(contract, tmp_path)
        assert reload(gateway)["unchanged"] == ["m", "n"]
        write_contract(replace(contract, templates={"default": "{{ messages[-1].content }}"}), tmp_path)
        found = reload(gateway)
        assert (found["restarted"], found["unchanged"]) == (["m"], ["n"])
        before = pids(gateway)
        (tmp_path / "c.jinja").write_text("by hand")
        refused = gateway.ask("POST", "/admin/reload")
        assert refused.status_code == 400
        assert "is not that of c.jinja: the template was changed" in refused.text
        assert pids(gateway) == before


def test_by_signal_and_by_watching(tmp_path: Path) -> None:
    """SIGHUP reloads; with `watch` a change of the file does, also when an editor replaces it; without it none does."""
    model = fake_model(tmp_path)
    with running_gateway(tmp_path, {"m": model}) as gateway:
        rewrite(gateway, {"m": model, "by-signal": fake_model(tmp_path)}, watch=True)
        gateway.signal(signal.SIGHUP)
        gateway.until_logged("the configuration was reloaded: added by-signal; applied gateway.watch")
        gateway.until_state("by-signal", "ready")
        rewrite(gateway, {"m": model})
        until(lambda: "by-signal" not in pids(gateway), what="the change is noticed")
        rewrite(gateway, watch=False)
        until(lambda: gateway.metric("unigate_reloads_total", result="applied") == 3)


def test_a_stop_during_a_roll(tmp_path: Path) -> None:
    """TERM while replicas are being exchanged ends the gateway in order, with nothing left."""
    model = fake_model(tmp_path, "ready-after=1", replicas=3)
    with running_gateway(tmp_path, {"m": model}) as gateway:
        rewrite(gateway, {"m": {**model, "context_length": 2048, "replicas": 2}, "n": fake_model(tmp_path)})
        assert not reload(gateway, 0)["is_complete"]
    assert gateway.process.returncode == 0


def test_the_command(tmp_path: Path) -> None:
    """`unigate reload` says what it does; --json gives it to scripts."""
    model = fake_model(tmp_path)
    with running_gateway(tmp_path, {"m": model}) as gateway:
        done = gateway.command("reload")
        assert (done.returncode, done.stdout) == (0, "nothing has changed\n")
        rewrite(gateway, {"n": fake_model(tmp_path)})
        done = gateway.command("reload", "--wait", "20")
        assert (done.returncode, done.stdout) == (0, "added: n\nremoved: m\n")
        assert json.loads(gateway.command("reload", "--json").stdout)["unchanged"] == ["n"]
