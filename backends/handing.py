"""Whether an engine that is given a finished prompt takes exactly that: asked of one that runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.adapter import Adapter, Body, Call, Given
from backends.asking import Ask
from backends.prompting import CallRefused, Witness
from backends.seen import CHAT, body_of
from backends.settings import BackendSettings
from backends.translation import Untranslatable
from chat_templates.battery import CASES, FEATURES, Feature
from chat_templates.prompts import Prompt, Seen
from chat_templates.proof import Handed

ENDPOINT = "chat/completions"
GREEDY: Body = {"max_tokens": 16, "temperature": 0}
ATTEMPTS = 2
"""An answer to a prompt that is in the engine's cache may differ in its last bits from one that is not: the second
attempt finds both there (seen with llama.cpp, build 11549)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation as a request's *body*, with its *prompt*. is_exact: the engine itself makes that prompt of it."""

    case: str
    body: Body
    prompt: Prompt
    is_exact: bool


class Handing:
    """What is asked of *backend* for it, by *ask*. *notes*: what people should know of how it went."""

    def __init__(self, backend: BackendSettings, adapter: Adapter, ask: Ask) -> None:
        self.notes: list[str] = []
        self._backend = backend
        self._adapter = adapter
        self._ask = ask
        self._witness: Witness = adapter.witness

    async def outcome(self, samples: Sequence[Sample]) -> Handed | None:
        """None where the engine takes no finished prompts. Raises httpx.RequestError."""
        if not samples:
            return None
        first = samples[0]
        given = self._given(first.body, first.prompt)
        if given is None:
            return None
        for sample in samples:
            problem = await self._problem(sample, decoy=samples[-1 if sample is first else 0])
            if problem:
                return Handed(given.mode, self._features(first.prompt), f"{sample.case}: {problem}")
        return Handed(given.mode, self._features(first.prompt))

    def _features(self, prompt: Prompt) -> frozenset[Feature]:
        """Those with which a request may come: the engine takes each of them alone beside a finished prompt."""
        plainest = {
            feature: [case for case in CASES if feature in case.features and case.features <= {"text", feature}]
            for feature in FEATURES
        }
        return frozenset(
            feature
            for feature, cases in plainest.items()
            if all(self._given(body_of(self._backend, case.conversation), prompt) is not None for case in cases)
        )

    def _given(self, body: Body, prompt: Prompt) -> Given | None:
        return self._adapter.given(self._backend, ENDPOINT, {**body, **GREEDY}, prompt)

    async def _problem(self, sample: Sample, decoy: Sample) -> str:
        """How it was seen not to take the prompt of *sample* as it is, in words; empty where it did.

        The prompt comes with the messages of *decoy*, so that an engine that renders those is found out.
        """
        given = self._given(decoy.body, sample.prompt)
        if given is None:
            return "it takes no finished prompt"
        answers: list[tuple[str, str | None]] = []
        for _ in range(ATTEMPTS):
            try:
                answer = await self._answer_to(given)
            except (CallRefused, Untranslatable) as refusal:
                return f"the finished prompt was refused: {refusal}"
            seen = self._witness.seen(answer)
            problem = _otherwise(sample.prompt, seen)
            if problem or not sample.is_exact:
                return problem
            answers.append((_said(answer), await self._own_answer(sample.body)))
            if answers[-1][0] == answers[-1][1]:
                return ""
        difference = "the answer to the finished prompt is not that to the conversation"
        if seen.ids is None:
            return difference
        self.notes.append(f"{sample.case}: {difference}, though the ids are the same")
        return ""

    async def _own_answer(self, body: Body) -> str | None:
        """What it answers where it renders the conversation itself; None where it refuses."""
        asked = {**body, **GREEDY}
        try:
            translated = self._adapter.translate(self._backend, ENDPOINT, asked)
            given = Given("native", asked) if translated is None else Given("native", translated=translated)
            return _said(await self._answer_to(given))
        except (CallRefused, Untranslatable):
            return None

    async def _answer_to(self, given: Given) -> Mapping[str, Any]:
        """In OpenAI's form."""
        if given.translated is None:
            plain: Mapping[str, Any] = await self._ask(
                Call("POST", CHAT, {**(given.body or {}), **self._witness.fields})
            )
            return plain
        raw = await self._ask(Call("POST", given.translated.target, given.translated.body))
        translated: Mapping[str, Any] = json.loads(given.translated.answer.whole(json.dumps(raw).encode()))
        return translated


def _otherwise(prompt: Prompt, seen: Seen) -> str:
    """How what was *seen* differs from *prompt*, in words; empty where it does not, as far as it can be known."""
    if prompt.ids is None:
        return ""
    if seen.ids is not None:
        return "" if seen.ids == prompt.ids else "other ids were used than those given"
    if seen.count is None:
        return "the answer does not say how many ids were used"
    return "" if seen.count == len(prompt.ids) else f"{seen.count} ids were used, and {len(prompt.ids)} given"


def _said(answer: Mapping[str, Any]) -> str:
    """All text of the answer, but for half a character at its end: some parsers of answers drop that.

    What one way parses as reasoning, another may leave in the content.
    """
    message = answer["choices"][0]["message"]
    text = "".join(str(message.get(key) or "") for key in ("reasoning_content", "reasoning", "content"))
    return text.strip().rstrip("\ufffd").strip()
