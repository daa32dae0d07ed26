"""One proof of one running engine: what is asked of it, and what its answers are compared with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from backends.adapter import Adapter, TokenizeRequest, Unsupported
from backends.asking import Ask, outcome_of, together
from backends.contract_texts import template_text
from backends.handing import Handing, Sample
from backends.prompting import CallRefused, Prompting
from backends.render_pool import RenderPool
from backends.seen import body_of
from backends.settings import BackendSettings
from backends.translation import Untranslatable
from chat_templates.battery import CASES, Case
from chat_templates.canonical import prompt_of
from chat_templates.comparison import Comparison, Context, compare
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.features import features_of
from chat_templates.messages import ruled
from chat_templates.parity import Parity
from chat_templates.prompts import Prompt, Refused, Seen
from chat_templates.proof import Handed, Proof, Stops, Strings, concluded, modes_proven
from chat_templates.proof_cases import PROOF_CASES
from chat_templates.rendering import TemplateBroken, TemplateRefused
from chat_templates.tokenizer_strings import tokenizer_strings
from chat_templates.tokenizing import Tokenizer

CONTRACTS_OWN, ANOTHER = "the contract's", "another"
"""What an engine may be seen to have for a template."""
SAMPLES = frozenset({"user", "system_multi_turn", "unicode"})
"""The cases whose prompts it is given finished."""


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
        shown = await self._shown()
        strings = await self._strings()
        comparisons = await self._battery()
        stops = await self._stops()
        handed = await self._handed(comparisons)
        modes = modes_proven(self._prompting.mode, comparisons, strings, stops, handed)
        parity = Parity(self._contract.hash, self._backend.engine, modes)
        about = {
            "contract_name": self._contract.name,
            "engine_version": version,
            "mode": self._prompting.mode,
            "template_shown": shown,
            "notes": self._notes,
        }
        return concluded(parity, comparisons, strings, stops, handed, about)

    # the template

    async def _shown(self) -> str | None:
        """Whether the engine says that it has the template it was given; None where it says nothing of it.

        What counts is what it makes of it, and that is compared: an engine may mend a template as it loads it.
        """
        plan = self._adapter.see_template()
        if plan is None:
            return None
        try:
            text = await outcome_of(plan, self._ask)
        except CallRefused:
            return None
        if text == template_text(self._contract):
            return CONTRACTS_OWN
        self._notes.append("the engine says that it has another template than the one it was given")
        return ANOTHER

    # the tokenizer

    async def _strings(self) -> Strings | None:
        tokenizer = self._tokenizer
        if tokenizer is None:
            self._notes.append("the contract has no tokenizer at hand: prompts are compared by their texts")
            return None
        # What becomes of a BOS at the very start is a question of whole prompts.
        bos = tokenizer.special_tokens.get("bos_token") or "\0"
        given = tokenizer_strings(tokenizer.special_tokens.values(), self._contract.templates)
        texts = [text for text in given if not text.startswith(bos)]
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
        return await together([self._case(case) for case in PROOF_CASES])

    async def _case(self, case: Case) -> Comparison:
        context = Context(self._renderer, self._tokenizer, self._pool.from_threads())
        said: Seen | Refused = Seen()
        try:
            conversation = self._ruled(case)
            case = replace(case, conversation=conversation, features=features_of(conversation))
            expected = await self._prompt(conversation)
        except ConversationInvalid as problem:
            expected = Refused(str(problem))
        else:
            said = await self._seen(conversation)
        comparison = await asyncio.to_thread(compare, case, expected, said, context)
        self._done += 1
        self._say(f"proving the template: {self._done} of {len(PROOF_CASES)}")
        return comparison

    def _ruled(self, case: Case) -> Conversation:
        """As a request of that kind reaches the engine. Raises ConversationInvalid."""
        tokens = frozenset(self._contract.tokenizer.special_tokens.values())
        if self._tokenizer is not None:
            tokens |= self._tokenizer.control_tokens
        return ruled(self._contract.messages, case.conversation, tokens)

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

    async def _handed(self, comparisons: Sequence[Comparison]) -> Handed | None:
        exact = {one.case for one in comparisons if one.verdict == "exact" and one.basis != "count"}
        self._say("proving the template: finished prompts")
        samples = [sample for case in CASES if case.name in SAMPLES for sample in await self._samples(case, exact)]
        handing = Handing(self._backend, self._adapter, self._ask)
        handed = await handing.outcome(samples)
        self._notes += handing.notes
        return handed

    async def _samples(self, case: Case, exact: Collection[str]) -> list[Sample]:
        """One; none where the contract has no prompt for it."""
        try:
            conversation = self._ruled(case)
            prompt = await self._prompt(conversation)
        except ConversationInvalid:
            return []
        if not isinstance(prompt, Prompt):
            return []
        return [Sample(case.name, body_of(self._backend, conversation), prompt, case.name in exact)]
