"""Asking the fine-tune on each engine, as it comes and under its contract.

How many answers are right, and which prompts the engine was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from chat_templates.contract import Contract
from chat_templates.contract_file import read_contract, tokenizer_folder
from chat_templates.conversation import Conversation
from chat_templates.tokenizing import Tokenizer
from tests.engines.environment import lmdeploy_command, say, vllm_python
from tests.gateways import Gateway, running_gateway
from tests.parity_demo.dataset import Example

LOAD_S = 300.0
ANSWER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Measured:
    """One engine, served in one way. right, differing: of *asked* prompts. seen_by: what the prompts were told by."""

    engine: str
    way: str
    asked: int
    right: int
    differing: int
    seen_by: str
    examples: tuple[str, ...] = ()


Witness = Callable[[dict[str, Any], str], bool]
"""An answer's body and the right prompt's name in `Expected` -> whether the engine was given another prompt."""


class Expected:
    """The prompts that the model was trained with."""

    def __init__(self, contract: Contract, tokenizer: Tokenizer) -> None:
        self._renderer = contract.renderer()
        self._tokenizer = tokenizer

    def text(self, sentence: str) -> str:
        """As it was trained."""
        return self._renderer.render(Conversation([{"role": "user", "content": sentence}])).text

    def ids(self, sentence: str) -> list[int]:
        """Its ids."""
        return self._tokenizer.encode(self.text(sentence))


def measure(
    folder: Path, export: Path, gguf: Path, contract: Path, examples: Sequence[Example], engines: Sequence[str]
) -> Iterator[Measured]:
    """Every engine of *engines*, one after the other, raw and through a contract."""
    said = read_contract(contract)
    tokenizer = tokenizer_folder(contract)
    assert tokenizer is not None
    expected = Expected(said, Tokenizer.read(tokenizer))
    for engine in engines:
        for way, template in (("raw", None), ("through Unigate", {"contract": str(contract)})):
            say(f"{engine}, {way}")
            place = folder / f"{engine}-{way.split()[0]}"
            place.mkdir()
            model = {**_MODELS[engine](export, gguf), **({"template": template} if template else {})}
            with running_gateway(place, {"mood": model}, engines=_engines(), is_ready=False) as gateway:
                gateway.until_state("mood", "ready", "failed", within_s=LOAD_S)
                yield _asked(gateway, engine, way, examples, expected)


def _engines() -> dict[str, Any]:
    return {
        "vllm": {
            "command": [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"],
            "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        },
        "lmdeploy": {"command": lmdeploy_command()},
    }


def _vllm(export: Path, gguf: Path) -> dict[str, Any]:
    args = {"dtype": "float32", "enforce-eager": True, "max-num-seqs": 4}
    return {"engine": "vllm", "weights": str(export), "context_length": 1024, "args": args}


def _llamacpp(export: Path, gguf: Path) -> dict[str, Any]:
    # With this variable a slot shows the text of the prompt it was given.
    env = {"LLAMA_SERVER_SLOTS_DEBUG": "1"}
    return {"engine": "llamacpp", "weights": str(gguf), "context_length": 1024, "args": {"slots": True}, "env": env}


def _lmdeploy(export: Path, gguf: Path) -> dict[str, Any]:
    return {"engine": "lmdeploy", "weights": str(export), "context_length": 1024}


_MODELS: Mapping[str, Callable[[Path, Path], dict[str, Any]]] = {
    "vllm": _vllm,
    "llamacpp": _llamacpp,
    "lmdeploy": _lmdeploy,
}
ENGINES = tuple(_MODELS)


def _asked(gateway: Gateway, engine: str, way: str, examples: Sequence[Example], expected: Expected) -> Measured:
    is_other, seen_by = _WITNESSES[engine](gateway, expected)
    right = differing = 0
    wrong = []
    with httpx.Client(base_url=gateway.url, timeout=LOAD_S, trust_env=False) as client:
        for example in examples:
            body = {
                "model": "mood",
                "messages": [{"role": "user", "content": example.sentence}],
                "temperature": 0,
                "max_tokens": ANSWER_TOKENS,
                **({"return_token_ids": True} if engine == "vllm" else {}),
            }
            answer = client.post("/v1/chat/completions", json=body)
            if answer.status_code != 200:
                raise RuntimeError(f"{engine}, {way}: {answer.text}\n{gateway.logged()}")
            said = answer.json()
            text = said["choices"][0]["message"]["content"]
            right += text == example.answer
            if text != example.answer:
                wrong.append(text)
            differing += is_other(said, example.sentence)
    return Measured(engine, way, len(examples), right, differing, seen_by, tuple(wrong[:3]))


def _by_ids(gateway: Gateway, expected: Expected) -> tuple[Witness, str]:
    return (lambda said, sentence: said["prompt_token_ids"] != expected.ids(sentence)), "ids, by return_token_ids"


def _by_slot(gateway: Gateway, expected: Expected) -> tuple[Witness, str]:
    def is_other(said: dict[str, Any], sentence: str) -> bool:
        (socket,) = (gateway.folder / "state" / "sockets").glob("*.sock")
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://engine") as client:
            (slot,) = client.get("/slots").json()
        # What was generated stands behind it.
        return not slot["prompt"].startswith(expected.text(sentence)) or _count(said) != len(expected.ids(sentence))

    return is_other, "text of the slot, and number of ids"


def _by_count(gateway: Gateway, expected: Expected) -> tuple[Witness, str]:
    return (lambda said, sentence: _count(said) != len(expected.ids(sentence))), "number of ids"


def _count(said: dict[str, Any]) -> int:
    count: int = said["usage"]["prompt_tokens"]
    return count


_WITNESSES: Mapping[str, Callable[[Gateway, Expected], tuple[Witness, str]]] = {
    "vllm": _by_ids,
    "llamacpp": _by_slot,
    "lmdeploy": _by_count,
}
