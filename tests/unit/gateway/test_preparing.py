"""A request made ready for its engine: in a way that is proven of the leased run, or not at all."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from backends.address import Address
from backends.engines import ADAPTERS
from backends.lease import Lease
from backends.prompting import Prompting
from backends.settings import BackendSettings
from chat_templates.battery import Feature
from chat_templates.parity import Mode, Parity
from chat_templates.prompts import Prompt
from gateway.contracted import ContractedChat
from gateway.envelope import Envelope
from gateway.errors import BadRequest, ParityUnproven
from gateway.preparing import UNPROVEN, Preparing, as_leased
from gateway.prompts import Prompts
from gateway.routing import Route
from tests.contracts import PLAIN, REFUSING

USER = {"role": "user", "content": "Hi"}
PROMPTING = Prompting(PLAIN, Path("tuned.contract.yaml"))
IDS = (4, 2)


class KnownPrompts(Prompts):
    """Prompts that need no process: their number of renderings is kept."""

    def __init__(self) -> None:
        self.rendered = 0

    async def render(self, prompting: Prompting, chat: ContractedChat) -> str:
        self.rendered += 1
        if chat.conversation.messages[0]["role"] == "system":
            raise BadRequest("no system message here", code="template_refused")
        return "text"

    async def prompt(self, prompting: Prompting, chat: ContractedChat) -> Prompt:
        return Prompt(await self.render(prompting, chat), IDS)


def route_to(engine: str, prompting: Prompting = PROMPTING) -> Route:
    backend = BackendSettings("m", engine, prompting=prompting)
    return Route("m", (), backend, ADAPTERS[engine], ADAPTERS[engine].served(backend, "m"))


def lease_of(route: Route, *modes: Mode, only: tuple[Feature, ...] = get_args(Feature)) -> Lease:
    """A lease of a run that is proven for *modes* of the features in *only*."""
    prompting = route.backend.prompting
    assert prompting is not None
    parity = Parity(prompting.contract.hash, route.backend.engine, dict.fromkeys(only, modes))
    return Lease(route.backend, Address(host="127.0.0.1", port=1), "", lambda *_: None, parity=parity)


async def given(route: Route, lease: Lease, prompts: Prompts | None = None, **fields: Any) -> tuple[Any, str | None]:
    body = {"model": "m", "messages": [USER], **fields}
    preparing = Preparing(prompts or KnownPrompts())
    prepared = await preparing.prepared(Envelope("m", False, False, body), route, "chat/completions")
    return await preparing.given(prepared, lease)


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy", "llamacpp", "ollama"])
async def test_an_engine_whose_rendering_is_proven_renders(engine: str) -> None:
    """It is sent the ruled messages, and nothing is rendered here, because this template refuses nothing."""
    route, prompts = route_to(engine), KnownPrompts()
    made, mode = await given(route, lease_of(route, "native", "tokens"), prompts)
    assert mode == "native"
    assert (made.translated.body if made.translated else made.body)["messages"] == [USER]
    assert prompts.rendered == 0


@pytest.mark.parametrize(
    ("engine", "mode"), [("vllm", "tokens"), ("lmdeploy", "tokens"), ("llamacpp", "tokens"), ("ollama", "text")]
)
async def test_an_engine_that_is_proven_to_take_prompts_is_given_one(engine: str, mode: Mode) -> None:
    """As ids, or as the text where it takes no ids."""
    route = route_to(engine)
    made, chosen = await given(route, lease_of(route, mode))
    assert made.mode == chosen == mode
    body = made.translated.body if made.translated else made.body
    assert "text" in body.values() if mode == "text" else str(list(IDS)) in str(body)


async def test_a_kind_of_request_that_is_not_proven_is_a_conflict() -> None:
    """The error names the feature and the engine."""
    route = route_to("vllm")
    with pytest.raises(ParityUnproven, match="vllm is given the prompt of this model's contract for: system") as caught:
        await given(route, lease_of(route, "native", only=("text",)), messages=[{**USER, "role": "system"}, USER])
    assert (caught.value.status, caught.value.code) == (409, "template_parity_unproven")


async def test_what_the_proven_way_cannot_carry_goes_another_proven_way() -> None:
    """llama.cpp is given no prompt beside tools: it renders, where that is proven, and else there is a conflict."""
    route = route_to("llamacpp")
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert (await given(route, lease_of(route, "tokens", "native"), tools=tools))[1] == "native"
    with pytest.raises(ParityUnproven, match="llamacpp takes no finished prompt"):
        await given(route, lease_of(route, "tokens"), tools=tools)


async def test_where_it_is_only_warned_everything_is_served(caplog: pytest.LogCaptureFixture) -> None:
    """Said once for each kind of request, and not called proven."""
    route = route_to("vllm", replace(PROMPTING, policy="warn"))
    preparing = Preparing(KnownPrompts())
    envelope = Envelope("m", False, False, {"model": "m", "messages": [USER]})
    prepared = await preparing.prepared(envelope, route, "chat/completions")
    with caplog.at_level(logging.WARNING, "unigate.gateway"):
        for _ in range(2):
            made, mode = await preparing.given(prepared, lease_of(route))
            assert (made.mode, mode) == ("native", UNPROVEN)
    assert [record.message for record in caplog.records] == ["m: its contract's prompt is not proven on vllm: text"]


async def test_a_refusal_of_the_template_is_heard_before_an_engine_that_renders() -> None:
    """Only a template that can refuse is rendered for that."""
    refusing = replace(PROMPTING, contract=replace(PLAIN, templates={"default": REFUSING}))
    route, prompts = route_to("vllm", refusing), KnownPrompts()
    assert (await given(route, lease_of(route, "native"), prompts))[1] == "native"
    assert prompts.rendered == 1
    with pytest.raises(BadRequest, match="no system message here"):
        await given(route, lease_of(route, "native"), prompts, messages=[{**USER, "role": "system"}, USER])


async def test_without_a_contract_nothing_is_decided() -> None:
    """The request goes as it always did, and no mode is told."""
    backend = BackendSettings("m", "vllm")
    route = Route("m", (), backend, ADAPTERS["vllm"], ADAPTERS["vllm"].served(backend, "m"))
    lease = Lease(backend, Address(host="127.0.0.1", port=1), "", lambda *_: None)
    made, mode = await given(route, lease, chat_template_kwargs={"anything": 1})
    assert (made.body["chat_template_kwargs"], mode) == ({"anything": 1}, None)


def test_a_run_is_served_under_the_contract_it_was_started_with() -> None:
    """While a reload rolls its replicas, the lease's contract counts, not the route's."""
    old, new = route_to("vllm"), route_to("vllm", replace(PROMPTING, contract=replace(PLAIN, name="other")))
    assert as_leased(new, lease_of(new)) is new
    assert as_leased(new, lease_of(old)).backend.prompting == PROMPTING
