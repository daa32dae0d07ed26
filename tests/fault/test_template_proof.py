"""The proof at load in bad company: engines that make other prompts, that die or hang while they are asked for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chat_templates.contract import Contract, Stop, TokenizerFacts
from chat_templates.contract_file import write_contract
from chat_templates.proof_cases import PROOF_CASES
from chat_templates.tokenizing import Tokenizer
from tests.gateways import START_S, Gateway, fake_model, running_gateway, unigate, until, weights_in
from tests.oracle.folders import OWN, model_folder

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}</s>\n"
    "{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WITHOUT_GENERATION_PROMPT = CHATML[: CHATML.index("{% if add_generation_prompt")]
END = 2
"""The id of ``</s>``."""
QUICK_BACKOFF = {"base_s": 0.05, "max_s": 0.1}


def model(folder: Path, *flags: str, policy: str = "enforce", mode: str = "auto", **settings: Any) -> dict[str, Any]:
    """A model under a contract, on a fake engine that renders what it is told to unless *flags* say otherwise."""
    model_folder(weights_in(folder), OWN)
    tokenizer = Tokenizer.read(weights_in(folder))
    facts = TokenizerFacts(tokenizer.sha256, "none", tokenizer.special_tokens)
    contract = Contract("tuned", {"default": CHATML}, "here", tokenizer=facts, stop=Stop((END,)))
    template = {"contract": str(write_contract(contract, folder)), "parity": policy, "mode": mode}
    return fake_model(folder, *flags, template=template, **settings)


def proof_of(gateway: Gateway, name: str = "m") -> dict[str, Any]:
    (entry,) = gateway.ask("GET", f"/admin/models/{name}/parity").json()
    proof: dict[str, Any] = entry["proof"]
    return proof


def logged(gateway: Gateway, name: str = "m") -> str:
    return gateway.ask("GET", f"/admin/backends/{name}/logs?lines=400").text


def test_an_engine_that_renders_the_contract_is_proven(tmp_path: Path) -> None:
    """Every feature is proven in both ways, ready comes after it, and its phase was shown on the way."""
    with running_gateway(tmp_path, {"m": model(tmp_path)}) as gateway:
        proof = proof_of(gateway)
        assert proof["problem"] == ""
        assert proof["unproven"] == []
        assert set(map(tuple, proof["modes"].values())) == {("native", "tokens")}
        assert proof["tokenizer"]["compared"] >= 200
        assert {case["verdict"] for case in proof["cases"]} <= {"exact", "refused"}
        assert gateway.backend("m")["parity"]["contract"] == proof["contract"]
        said = logged(gateway)
        assert said.index("the template is proven") < said.index("BecameReady")


def test_another_template_fails_the_start(tmp_path: Path) -> None:
    """Where only its own rendering is allowed, an engine that renders otherwise is FAILED at once, in words: the
    conversation, the cause, and what to do; its process is gone, and a request is told the same."""
    other = tmp_path / "other.jinja"
    other.write_text(WITHOUT_GENERATION_PROMPT)
    models = {"m": model(tmp_path, f"renders={other}", mode="native")}
    with running_gateway(tmp_path, models, is_ready=False) as gateway:
        gateway.until_state("m", "failed")
        backend = gateway.backend("m")
        assert backend["diagnosis"]["code"] == "template_mismatch"
        assert backend["diagnosis"]["permanent"]
        assert "such as user (missing_generation_prompt)" in backend["diagnosis"]["reason"]
        assert "unigate template verify" in backend["diagnosis"]["advice"]
        assert backend["pid"] is None
        assert proof_of(gateway)["unproven"]
        refused = gateway.ask(
            "POST", "/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
        )
        assert "The engine's prompts are not those of the contract" in refused.text


def test_an_engine_that_trims_is_not_believed(tmp_path: Path) -> None:
    """White space about what a user wrote is lost: any request may have it, so none is rendered by the engine."""
    other = tmp_path / "other.jinja"
    other.write_text(CHATML.replace("{{ m.content }}", "{{ m.content | trim }}"))
    with running_gateway(tmp_path, {"m": model(tmp_path, f"renders={other}")}) as gateway:
        proof = proof_of(gateway)
        assert set(map(tuple, proof["modes"].values())) == {("tokens",)}
        causes = {case["case"]: case["cause"] for case in proof["cases"] if case["verdict"] == "mismatch"}
        assert causes["plain_whitespace"] == "content_trimmed"


def test_finished_prompts_save_it(tmp_path: Path) -> None:
    """In mode auto the same engine is READY: it is given the ids itself, and its own rendering is not believed."""
    other = tmp_path / "other.jinja"
    other.write_text(WITHOUT_GENERATION_PROMPT)
    with running_gateway(tmp_path, {"m": model(tmp_path, f"renders={other}")}) as gateway:
        proof = proof_of(gateway)
        assert set(map(tuple, proof["modes"].values())) == {("tokens",)}
        assert proof["finished_prompts"] == {**proof["finished_prompts"], "mode": "tokens", "problem": ""}


def test_an_engine_that_passes_ids_over_is_found_out(tmp_path: Path) -> None:
    """Ids that are taken for nothing prove nothing: the engine's own rendering, which is right, is what is left."""
    with running_gateway(tmp_path, {"m": model(tmp_path, "takes-no-ids")}) as gateway:
        proof = proof_of(gateway)
        assert set(map(tuple, proof["modes"].values())) == {("native",)}
        assert "other ids were used" in proof["finished_prompts"]["problem"]


def test_an_answer_that_would_run_on(tmp_path: Path) -> None:
    """An engine that does not end at the contract's stop id is FAILED, whoever renders."""
    with running_gateway(tmp_path, {"m": model(tmp_path, "deaf-ends")}, is_ready=False) as gateway:
        gateway.until_state("m", "failed")
        assert "missing_stop" in gateway.backend("m")["diagnosis"]["reason"]
        assert proof_of(gateway)["stops"] == {"wanted": [END], "missing": [END]}


@pytest.mark.parametrize(("policy", "is_proven"), [("warn", True), ("off", False)])
def test_the_other_policies_serve(tmp_path: Path, policy: str, is_proven: bool) -> None:
    """warn serves what is not proven, and says so in the log; off asks nothing of the engine."""
    models = {"m": model(tmp_path, "deaf-ends", policy=policy)}
    with running_gateway(tmp_path, models) as gateway:
        assert (proof_of(gateway) is not None) == is_proven
        assert ("the template is not proven" in logged(gateway)) == is_proven
        if is_proven:
            gateway.until_logged("m: served although The engine's prompts are not those of the contract")


def test_a_proof_is_kept(tmp_path: Path) -> None:
    """A start of the very same takes the proof of the one before; one with another contract proves anew."""
    with running_gateway(tmp_path, {"m": model(tmp_path)}) as gateway:
        first = proof_of(gateway)
        gateway.ask("POST", "/admin/backends/m/restart?wait_s=30")
        again = proof_of(gateway)
        assert (first["is_from_cache"], again["is_from_cache"]) == (False, True)
        assert again == {**first, "is_from_cache": True}
        changed = replace_template(tmp_path, CHATML.replace("<assistant>", "<answer>"))
        gateway.ask("POST", "/admin/reload?wait_s=30")
        gateway.until_ready()
        assert proof_of(gateway)["contract"] == changed
        assert not proof_of(gateway)["is_from_cache"]


def replace_template(folder: Path, template: str) -> str:
    """Another contract under the same name; its hash."""
    tokenizer = Tokenizer.read(weights_in(folder))
    facts = TokenizerFacts(tokenizer.sha256, "none", tokenizer.special_tokens)
    contract = Contract("tuned", {"default": template}, "here", tokenizer=facts, stop=Stop((END,)))
    write_contract(replace(contract), folder)
    return contract.hash


def test_an_engine_that_dies_while_it_is_proven(tmp_path: Path) -> None:
    """It is started again like any engine that ends, and given up like one."""
    models = {"m": model(tmp_path, "die-after=7", backoff=QUICK_BACKOFF)}
    with running_gateway(tmp_path, models, is_ready=False) as gateway:
        gateway.until_state("m", "failed")
        assert gateway.backend("m")["restarts"] >= 1
        assert "exit code 70" in gateway.backend("m")["diagnosis"]["reason"]


def test_a_stop_while_it_is_proven(tmp_path: Path) -> None:
    """An engine that hangs in its proof is shown with how far that is, and stops when it is told to."""
    with running_gateway(tmp_path, {"m": model(tmp_path, "stall-after=370")}, is_ready=False) as gateway:
        until(lambda: f" of {len(PROOF_CASES)}" in gateway.backend("m")["phase"], START_S, "how far the proof is")
        assert gateway.backend("m")["state"] == "starting"
        gateway.ask("POST", "/admin/backends/m/unload?wait_s=20")
        assert gateway.backend("m")["state"] == "stopped"


def test_verify_asks_a_running_gateway(tmp_path: Path) -> None:
    """`unigate template verify` shows what was proven at load, and ends with 1 where anything differs."""
    other = tmp_path / "other.jinja"
    other.write_text(WITHOUT_GENERATION_PROMPT)
    models = {"good": model(tmp_path), "bad": model(tmp_path, f"renders={other}", policy="warn")}
    with running_gateway(tmp_path, models) as gateway:
        words = ("template", "verify", "-c", str(gateway.config))
        good = unigate(*words, "--model", "good", cwd=tmp_path, environ=gateway.environ)
        assert (good.returncode, good.stderr) == (0, "")
        assert "good on vllm fake, contract" in good.stdout
        bad = unigate(*words, "--json", cwd=tmp_path, environ=gateway.environ)
        assert bad.returncode == 1
        assert [entry["backend"] for entry in json.loads(bad.stdout)] == ["good", "bad"]
        unknown = unigate(*words, "--model", "goood", cwd=tmp_path, environ=gateway.environ)
        assert unknown.returncode == 2
        assert 'did you mean "good"' in unknown.stderr


CHAT: Any = {"model": "m", "messages": [{"role": "user", "content": "How many legs has a spider?"}], "max_tokens": 3}


def test_requests_are_sampled(tmp_path: Path) -> None:
    """Answers that are looked at are as ever, whole and streamed, and counted as exact; a client that asks for the ids
    itself has them. Nothing else is looked at than the share that is asked for."""
    all_of_them, none = model(tmp_path), model(tmp_path)
    all_of_them["template"] = all_of_them["template"] | {"sample": 1}
    none["template"] = none["template"] | {"sample": 0}
    with running_gateway(tmp_path, {"m": all_of_them, "n": none}) as gateway:
        whole = gateway.ask("POST", "/v1/chat/completions", json=CHAT)
        assert whole.json()["choices"][0]["message"]["content"] == "word0 word1 word2 "
        assert "token_ids" not in whole.text
        streamed = gateway.ask("POST", "/v1/chat/completions", json={**CHAT, "stream": True})
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert "token_ids" not in streamed.text
        asked = gateway.ask("POST", "/v1/chat/completions", json={**CHAT, "return_token_ids": True})
        assert asked.json()["prompt_token_ids"]
        gateway.ask("POST", "/v1/chat/completions", json={**CHAT, "model": "n"})
        until(lambda: gateway.metric("unigate_template_parity_samples_total", model="m", result="exact") == 3)
        assert not gateway.metric("unigate_template_parity_samples_total", model="n", result="exact")


def test_a_prompt_that_changes_after_the_proof(tmp_path: Path) -> None:
    """An engine that begins to render otherwise is found out by a sample: counted, and logged with the cause, without a
    word of the conversation."""
    section = model(tmp_path, f"turns-to={tmp_path / 'other.jinja'}", mode="native")
    section["template"] |= {"sample": 1}
    with running_gateway(tmp_path, {"m": section}) as gateway:
        (tmp_path / "other.jinja").write_text(WITHOUT_GENERATION_PROMPT)
        assert gateway.ask("POST", "/v1/chat/completions", json=CHAT).status_code == 200
        line = gateway.until_logged("another prompt than the contract's")
        assert "missing_generation_prompt" in line
        assert "spider" not in gateway.logged()
        assert gateway.metric("unigate_template_parity_samples_total", model="m", result="mismatch") == 1


def test_verify_starts_engines_where_no_gateway_runs(tmp_path: Path) -> None:
    """Each model's engine is started, proven and ended, whatever the policy; the report shows where they part."""
    other = tmp_path / "other.jinja"
    other.write_text(WITHOUT_GENERATION_PROMPT)
    models = {"m": model(tmp_path, f"renders={other}", policy="off")}
    with running_gateway(tmp_path, models) as gateway:
        config, environ = gateway.config, gateway.environ
    seen = unigate("template", "verify", "-c", str(config), cwd=tmp_path, environ=environ)
    assert seen.returncode == 1
    assert "no gateway runs: starting the engines for it" in seen.stderr
    assert "missing_generation_prompt" in seen.stdout
    assert "is the first that differs:" in seen.stdout
    assert "the gateway renders, and the engine is given ids" in seen.stdout
