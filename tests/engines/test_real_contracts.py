"""The real engines under a contract: what each of them shows of a prompt is what the contract says it is.

Two contracts for the same weights: their own template, and that of another fine-tune, with a pinned variable and
an end of answers that the weights do not name. What the gateway does with a contract is no part of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.adapter import TokenizeRequest
from backends.address import Address
from backends.engines import ADAPTERS
from backends.engines.lmdeploy import LmDeploy
from backends.gguf import further_ends
from backends.prompting import Prompting
from backends.run_folder import write_run_folder
from backends.settings import BackendSettings, EngineSettings
from chat_templates.battery import BATTERY, Case
from chat_templates.contract import Contract, Stop, TokenizerFacts
from chat_templates.contract_file import write_contract
from chat_templates.conversation import Conversation
from chat_templates.forms.gguf_file import RewrittenGguf
from chat_templates.model_folder import read_special_tokens, read_templates
from chat_templates.probing import outcome
from chat_templates.rendering import Renderer
from chat_templates.tokenizing import Tokenizer
from tests.engines.environment import gguf_model, hf_model, lmdeploy_command, lmdeploy_python, vllm_python
from tests.gateways import Gateway, running_gateway

pytestmark = pytest.mark.timeout(420)

START_S = 300.0
BOTH = ("own", "foreign")
FULL_STOP = 30
"""The id of "." in the vocabulary of SmolLM2."""
FOREIGN = (
    "{% for m in messages %}{% if m.role == 'user' %}### Question ({{ mood }}):\n{{ m.content }}\n"
    "{% else %}### {{ m.role }}:\n{{ m.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Answer:\n{% endif %}\n"
)
ROLES = {"system", "user", "assistant"}
PLAIN = [
    case
    for case in BATTERY
    if case.features <= {"text", "system", "multi_turn"}
    and not case.conversation.continue_final_message
    and all(
        message["role"] in ROLES and isinstance(message.get("content"), str) for message in case.conversation.messages
    )
]
"""Conversations to which the contract's message rules, which are the gateway's to apply, have nothing to do."""
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


def contracts() -> dict[str, Contract]:
    """The two contracts by the name of the model that has them."""
    facts = TokenizerFacts(Tokenizer.read(hf_model()).sha256, "none", read_special_tokens(hf_model()))
    own = Contract("own", read_templates(hf_model()), "chat_template.jinja", tokenizer=facts, stop=Stop((2,)))
    stop = Stop((2, FULL_STOP))
    foreign = replace(own, name="foreign", templates={"default": FOREIGN}, pinned={"mood": "calm"}, stop=stop)
    return {contract.name: contract for contract in (own, foreign)}


def models(folder: Path, engine: str, weights: Path, **settings: Any) -> dict[str, Any]:
    """A model for each contract, believed without a proof: that is what is looked at here."""
    return {
        name: {
            "engine": engine,
            "weights": str(weights),
            "context_length": 8192,
            "template": {
                "contract": str(write_contract(contract, folder)),
                "tokenizer": str(hf_model()),
                "parity": "off",
                "mode": "native",
            },
            **settings,
        }
        for name, contract in contracts().items()
    }


def wanted(name: str, case: Case) -> list[int] | None:
    """The ids of the contract's prompt; None where it has none."""
    text = outcome(Renderer.render, contracts()[name].renderer(), case.conversation).text
    return None if text is None else Tokenizer.read(hf_model()).encode(text)


def engine_of(gateway: Gateway, name: str) -> httpx.Client:
    """A client of the engine itself, past the gateway."""
    address = gateway.backend(name)["address"]
    if address.startswith("unix:"):
        transport = httpx.HTTPTransport(uds=address.removeprefix("unix:"))
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=120)
    return httpx.Client(base_url=f"http://{address.removeprefix('http://')}", timeout=120)


def ids_shown(gateway: Gateway, name: str, case: Case) -> list[int]:
    """What the engine itself makes of the conversation; the gateway would answer in its place."""
    engine = ADAPTERS[gateway.backend(name)["engine"]]
    conversation = case.conversation
    plan = engine.tokenize(
        TokenizeRequest(None, list(conversation.messages), False, conversation.add_generation_prompt)
    )
    with engine_of(gateway, name) as client:
        call = next(plan)
        while True:
            answer = client.request(call.method, call.target, json={**(call.body or {}), "model": name})
            assert answer.status_code == 200, answer.text
            try:
                call = plan.send(answer.json())
            except StopIteration as done:
                tokens: list[int] = done.value.tokens
                return tokens


def shows_its_contract(gateway: Gateway, name: str) -> None:
    """Over the plain conversations of the battery, the model's prompts are its contract's, id by id."""
    told = {case.name: (wanted(name, case), case) for case in PLAIN}
    assert sum(ids is not None for ids, _ in told.values()) > 5
    assert [
        case_name
        for case_name, (ids, case) in told.items()
        if ids is not None and ids_shown(gateway, name, case) != ids
    ] == []


def ends_at_a_full_stop(gateway: Gateway, name: str) -> bool:
    """Whether a long answer is ended by its first full stop."""
    body = {"model": name, "prompt": "The capital of France is Paris", "max_tokens": 60, "temperature": 0}
    with engine_of(gateway, name) as client:
        (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    is_ended: bool = choice["finish_reason"] == "stop" and "." not in choice["text"].rstrip(".")
    return is_ended


# --- vLLM


@pytest.fixture(scope="module", params=BOTH)
def vllm(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """One at a time: each takes half a minute and 3 GB."""
    folder = tmp_path_factory.mktemp("real")
    settings = {
        "args": {"enforce-eager": True},
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
        "start_timeout_s": START_S,
    }
    engines = {"vllm": {"command": [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"]}}
    one = {request.param: models(folder, "vllm", hf_model(), **settings)[request.param]}
    with running_gateway(folder, one, engines=engines, is_ready=False) as gateway:
        gateway.until_ready(START_S)
        yield gateway


@pytest.mark.engine_vllm
def test_vllm_under_a_contract(vllm: Gateway) -> None:
    """vLLM's own rendering, tokenised by vLLM, is the contract's; its stop id ends every answer; its door is shut.

    The stop id is in the folder that --generation-config names. Past the gateway too, a request brings no template of
    its own, and no value for what is pinned.
    """
    (name,) = (model["id"] for model in vllm.ask("GET", "/v1/models").json()["data"])
    shows_its_contract(vllm, name)
    assert ends_at_a_full_stop(vllm, name) == (name == "foreign")
    with engine_of(vllm, name) as client:
        body = {"model": name, "messages": QUESTION, "max_tokens": 1}
        assert client.post("/v1/chat/completions", json={**body, "chat_template": "{{ 1 }}"}).status_code == 400
        said = {**body, "chat_template_kwargs": {"mood": "wild"}}
        shown = [client.post("/tokenize", json=one).json()["tokens"] for one in (body, said)]
        assert shown[0] == shown[1]


# --- llama.cpp


@pytest.fixture(scope="module")
def llamacpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("real")
    with running_gateway(folder, models(folder, "llamacpp", gguf_model()), is_ready=False) as gateway:
        gateway.until_ready(START_S)
        yield gateway


@pytest.mark.engine_llamacpp
@pytest.mark.parametrize("name", BOTH)
def test_llamacpp_shows_its_contracts(llamacpp: Gateway, name: str) -> None:
    """llama.cpp's own rendering, tokenised by llama.cpp, is the contract's."""
    shows_its_contract(llamacpp, name)


@pytest.mark.engine_llamacpp
def test_llamacpp_has_nothing_but_the_contracts_template(llamacpp: Gateway) -> None:
    """/props shows the contract's template, and neither an open answer nor earlier reasoning is taken as usual."""
    with engine_of(llamacpp, "foreign") as client:
        assert client.get("/props").json()["chat_template"].startswith('{% set mood = "calm" %}')
        answered = [*QUESTION, {"role": "assistant", "content": "Paris"}]
        prompt = client.post("/apply-template", json={"messages": answered}).json()["prompt"]
        assert prompt.endswith("### assistant:\nParis\n### Answer:\n"), "a new turn begins"
        said = {"messages": QUESTION, "chat_template_kwargs": {"mood": "wild"}}
        assert "(calm)" in client.post("/apply-template", json=said).json()["prompt"]


@pytest.mark.engine_llamacpp
def test_ends_in_the_head_of_a_gguf_file(tmp_path: Path) -> None:
    """A stop id that is written into a GGUF file as its EOT, as Ollama is given it, ends llama.cpp's answers."""
    weights = tmp_path / "m.gguf"
    ends = further_ends(gguf_model(), (2, FULL_STOP))
    rewritten = RewrittenGguf(gguf_model(), (("default", FOREIGN),), tuple(ends.items()))
    with rewritten.open() as made, weights.open("wb") as file:
        shutil.copyfileobj(made, file)
    plain = {"engine": "llamacpp", "weights": str(weights), "context_length": 512}
    with running_gateway(tmp_path, {"ending": plain}, is_ready=False) as gateway:
        gateway.until_ready(START_S)
        assert ends_at_a_full_stop(gateway, "ending")


@pytest.mark.engine_llamacpp
def test_the_embedded_llamacpp_has_no_place_for_ends(llamacpp: Gateway) -> None:
    """A stop id that the GGUF file does not name ends no answer there: what the proof has to find."""
    assert not ends_at_a_full_stop(llamacpp, "foreign")


# --- LMDeploy


@pytest.fixture(scope="module")
def lmdeploy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("real")
    # A name by which LMDeploy would choose a template of its own.
    weights = folder / "mistral-instruct-exp"
    weights.symlink_to(hf_model())
    engines = {"lmdeploy": {"command": lmdeploy_command()}}
    settings = {"env": {"HF_HUB_OFFLINE": "1"}}
    with running_gateway(
        folder, models(folder, "lmdeploy", weights, **settings), engines=engines, is_ready=False
    ) as gateway:
        gateway.until_ready(START_S)
        yield gateway


@pytest.mark.engine_lmdeploy
@pytest.mark.parametrize("name", BOTH)
def test_lmdeploy_shows_its_contracts(lmdeploy: Gateway, name: str) -> None:
    """LMDeploy shows the ids of a single user message, and how many there are of every conversation."""
    compared = 0
    with engine_of(lmdeploy, name) as client:
        for case in PLAIN:
            conversation, ids = case.conversation, wanted(name, case)
            messages = list(conversation.messages)
            # it continues an answer that stands last, which is another kind of conversation
            if ids is None or not conversation.add_generation_prompt or messages[-1]["role"] == "assistant":
                continue
            if [message["role"] for message in messages] == ["user"]:
                assert ids_shown(lmdeploy, name, case) == ids, case.name
            body = {"model": name, "messages": messages, "max_tokens": 1}
            answer = client.post("/v1/chat/completions", json=body).json()
            assert "usage" in answer, (case.name, answer)
            assert answer["usage"]["prompt_tokens"] == len(ids), case.name
            compared += 1
    assert compared > 5


@pytest.mark.engine_lmdeploy
def test_lmdeploy_ends_where_the_contract_ends(lmdeploy: Gateway) -> None:
    """A stop id of the contract, in the folder that stands for the weights, ends every answer; no other model's."""
    assert ends_at_a_full_stop(lmdeploy, "foreign")
    assert not ends_at_a_full_stop(lmdeploy, "own")


@pytest.mark.engine_lmdeploy
def test_lmdeploy_would_have_chosen_by_the_path(tmp_path: Path) -> None:
    """Below a folder of such a name LMDeploy's own code takes Mistral's template, unless it is told as we tell it."""
    contract = contracts()["foreign"]
    prompting = Prompting(contract, tmp_path / "foreign.contract.yaml", hf_model())
    backend = BackendSettings("foreign", "lmdeploy", hf_model(), prompting=prompting)
    folder = tmp_path / "mistral-instruct-exp"
    spec = LmDeploy().launch_spec(backend, EngineSettings(), Address(host="127.0.0.1", port=1), folder)
    write_run_folder(folder, spec.files)
    argv = list(spec.argv[3:])
    place = argv.index("--chat-template")
    jobs = [{"argv": one, "messages": QUESTION} for one in (argv, argv[:place] + argv[place + 2 :])]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(lmdeploy_python()), str(Path(__file__).with_name("lmdeploy_choice.py"))],
        input=json.dumps(jobs).encode(),
        stdout=subprocess.PIPE,
        env={**environ, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    told, left_to_itself = json.loads(done.stdout[done.stdout.index(b'["') :])
    assert told == contract.renderer().render(Conversation(QUESTION)).text
    assert left_to_itself == "[INST] What is the capital of France? [/INST]"
