"""One proof of one running engine: what is asked of it, and what its answers are compared with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from backends.adapter import Adapter, Body, Call, Given, TokenizeRequest, Unsupported
from backends.asking import Ask, outcome_of, together
from backends.prompting import CallRefused, Prompting, Witness
from backends.render_pool import RenderPool
from backends.seen import CHAT, body_of
from backends.settings import BackendSettings
from backends.translation import Untranslatable
from chat_templates.battery import CASES, FEATURES, Case
from chat_templates.canonical import prompt_of
from chat_templates.comparison import Comparison, Context, compare
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.messages import ruled
from chat_templates.parity import Parity
from chat_templates.prompts import Prompt, Refused, Seen
from chat_templates.proof import Handed, Proof, Stops, Strings, concluded, modes_proven
from chat_templates.rendering import Rendered, Renderer, TemplateBroken, TemplateRefused
from chat_templates.tokenizer_strings import tokenizer_strings
from chat_templates.tokenizing import Tokenizer

GREEDY_TOKENS = 16
GREEDY_CASES = ("user", "system_multi_turn", "unicode")


class ProofWork:
    """One proof under way."""

    def __init__(
        self,
        backend: BackendSettings,
        prompting: Prompting,
        adapter: Adapter,
        ask: Ask,
        say: Callable[[str], None],
        tokenizer: Tokenizer | None,
        pool: RenderPool,
    ) -> None:
        self._backend = backend
        self._prompting = prompting
        self._contract = prompting.contract
        self._adapter = adapter
        self._ask = ask
        self._say = say
        self._tokenizer = tokenizer
        self._pool = pool
        self._renderer = self._contract.renderer()
        self._notes: list[str] = []
        self._done = 0

    async def proof(self, version: str | None) -> Proof:
        """All of it, in an order in which each step may build on the one before."""
        strings = await self._strings()
        comparisons = await self._battery()
        stops = await self._stops()
        exact = {one.case for one in comparisons if one.verdict == "exact" and one.basis != "count"}
        handed = await self._handed(exact)
        modes = modes_proven(self._prompting.mode, comparisons, strings, stops, handed)
        parity = Parity(self._contract.hash, self._backend.engine, modes)
        about = {
            "contract_name": self._contract.name,
            "engine_version": version,
            "mode": self._prompting.mode,
            "notes": self._notes,
        }
        return concluded(parity, comparisons, strings, stops, handed, about)

    # the tokenizer

    async def _strings(self) -> Strings | None:
        tokenizer = self._tokenizer
        if tokenizer is None:
            self._notes.append("the contract has no tokenizer at hand: prompts are compared by their texts")
            return None
        texts = tokenizer_strings(tokenizer.special_tokens.values(), self._contract.templates)
        self._say(f"proving the template: {len(texts)} texts tokenised")
        expected = await asyncio.to_thread(lambda: [tokenizer.encode(text) for text in texts])
        try:
            seen = await together([self._tokenised(text) for text in texts])
        except Unsupported as problem:
            self._notes.append(f"{problem}: its tokenizer is seen only by what it makes of conversations")
            return None
        pairs = zip(texts, expected, seen, strict=True)
        return Strings(len(texts), tuple(text for text, ours, theirs in pairs if ours != theirs))

    async def _tokenised(self, text: str) -> list[int] | None:
        request = TokenizeRequest(prompt=text, messages=None, add_special_tokens=False)
        try:
            answer = await outcome_of(self._adapter.tokenize(request), self._ask)
        except CallRefused:
            return None
        return answer.tokens

    # the battery

    async def _battery(self) -> list[Comparison]:
        if self._adapter.see(self._backend, CASES[0].conversation) is None:
            self._notes.append("this engine does not show the prompts that it makes")
            return []
        self._done = 0
        return await together([self._case(case) for case in CASES])

    async def _case(self, case: Case) -> Comparison:
        context = Context(self._renderer, self._tokenizer, self._rendering(asyncio.get_running_loop()))
        conversation = case.conversation
        said: Seen | Refused = Seen()
        try:
            conversation = ruled(self._contract.messages, case.conversation)
            expected = await self._prompt(conversation)
        except ConversationInvalid as problem:
            expected = Refused(str(problem))
        else:
            said = await self._seen(conversation)
        comparison = await asyncio.to_thread(compare, replace(case, conversation=conversation), expected, said, context)
        self._done += 1
        self._say(f"proving the template: {self._done} of {len(CASES)}")
        return comparison

    async def _prompt(self, conversation: Conversation) -> Prompt | Refused:
        """What the contract says. Raises ConversationInvalid, and what says that a template cannot be rendered."""
        try:
            rendered = await self._pool.render(self._renderer, conversation)
        except (TemplateRefused, TemplateBroken) as problem:
            return Refused(str(problem))
        return await asyncio.to_thread(prompt_of, self._contract, rendered.text, self._tokenizer)

    async def _seen(self, conversation: Conversation) -> Seen | Refused:
        try:
            plan = self._adapter.see(self._backend, conversation)
            return Seen() if plan is None else await outcome_of(plan, self._ask)
        except CallRefused as refusal:
            return Refused(str(refusal))
        except Untranslatable as problem:
            return Refused(str(problem))

    def _rendering(self, loop: asyncio.AbstractEventLoop) -> Callable[[Renderer, Conversation], Rendered]:
        """`RenderPool.render` for a thread: a cause is looked for by rendering, and no template is to be trusted."""

        def render(renderer: Renderer, conversation: Conversation) -> Rendered:
            return asyncio.run_coroutine_threadsafe(self._pool.render(renderer, conversation), loop).result()

        return render

    # the ends

    async def _stops(self) -> Stops | None:
        wanted = self._contract.stop.token_ids
        plan = self._adapter.see_stops(self._backend)
        if plan is None:
            self._notes.append("this engine does not show at which ids it ends an answer")
            return None
        self._say("proving the template: where answers end")
        try:
            ends = await outcome_of(plan, self._ask)
        except CallRefused as refusal:
            self._notes.append(f"at which ids it ends an answer was not shown: {refusal}")
            return None
        return Stops(wanted, tuple(id_ for id_ in wanted if id_ not in ends))

    # finished prompts

    async def _handed(self, exact: set[str]) -> Handed | None:
        cases = {case.name: case for case in CASES}
        self._say("proving the template: finished prompts")
        plain = await self._prepared(cases[GREEDY_CASES[0]])
        if plain is None:
            return None
        given = self._given(*plain)
        if given is None:
            return None
        features = frozenset(
            feature
            for feature in FEATURES
            if all(
                self._given(body_of(self._backend, case.conversation), plain[1]) is not None
                for case in CASES
                if feature in case.features and case.features <= {"text", feature}
            )
        )
        problem = ""
        for name in GREEDY_CASES:
            prepared = await self._prepared(cases[name])
            if prepared is not None and not problem:
                problem = await self._handed_problem(name, *prepared, other=plain[0], is_exact=name in exact)
        return Handed(given.mode, features, problem)

    async def _prepared(self, case: Case) -> tuple[Body, Prompt] | None:
        try:
            conversation = ruled(self._contract.messages, case.conversation)
            prompt = await self._prompt(conversation)
        except ConversationInvalid:
            return None
        return (body_of(self._backend, conversation), prompt) if isinstance(prompt, Prompt) else None

    def _given(self, body: Body, prompt: Prompt) -> Given | None:
        asked = {**body, "max_tokens": GREEDY_TOKENS, "temperature": 0}
        return self._adapter.given(self._backend, "chat/completions", asked, prompt)

    async def _handed_problem(self, name: str, body: Body, prompt: Prompt, *, other: Body, is_exact: bool) -> str:
        """How the engine was seen not to take *prompt* as it is, in words; empty where it did.

        The prompt comes with the messages of *another* conversation, so that an engine which renders those is found
        out. What it answers is what it answers to the conversation itself, where that is rendered right.
        """
        witness = self._adapter.witness
        given = self._given(other, prompt)
        if given is None:
            return f"{name}: it takes no finished prompt for this conversation"
        try:
            handed = await self._answer_to(given, witness)
        except (CallRefused, Untranslatable) as refusal:
            return f"{name}: the finished prompt was refused: {refusal}"
        seen = witness.seen(handed)
        if prompt.ids is not None:
            if seen.ids is not None and seen.ids != prompt.ids:
                return f"{name}: other ids were used than those given"
            count = seen.count if seen.count is not None else (len(seen.ids) if seen.ids is not None else None)
            if count is None:
                return f"{name}: the answer does not say how many ids were used"
            if count != len(prompt.ids):
                return f"{name}: {count} ids were used, and {len(prompt.ids)} given"
        if not is_exact:
            return ""
        asked = {**body, "max_tokens": GREEDY_TOKENS, "temperature": 0}
        for _ in range(2):  # the second time with what the first has left in the engine's cache
            native = await self._native_answer(asked, witness)
            if native == _said(handed):
                return ""
        difference = f"{name}: the answer to the finished prompt differs from that to the conversation"
        if seen.ids is not None:
            self._notes.append(f"{difference}, and the ids are the same")
            return ""
        return difference

    async def _native_answer(self, body: Body, witness: Witness) -> str | None:
        try:
            translated = self._adapter.translate(self._backend, "chat/completions", body)
            given = Given("native", body) if translated is None else Given("native", translated=translated)
            return _said(await self._answer_to(given, witness))
        except (CallRefused, Untranslatable):
            return None

    async def _answer_to(self, given: Given, witness: Witness) -> Mapping[str, Any]:
        translated = given.translated
        if translated is not None:
            answer = await self._ask(Call("POST", translated.target, translated.body))
            whole: Mapping[str, Any] = json.loads(translated.answer.whole(json.dumps(answer).encode()))
            return whole
        plain: Mapping[str, Any] = await self._ask(Call("POST", CHAT, {**(given.body or {}), **witness.fields}))
        return plain


def _said(answer: Mapping[str, Any]) -> str:
    """All text of the answer: what one way parses as reasoning, another may leave in the content."""
    message = answer["choices"][0]["message"]
    return "".join(str(message.get(key) or "") for key in ("reasoning_content", "reasoning", "content")).strip()
