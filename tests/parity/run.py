"""The run: every engine with every template, as far as it has not been observed yet."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from chat_templates.battery import CASES, Case
from chat_templates.contract import Contract
from chat_templates.tokenizing import Tokenizer
from tests.parity.contracts import contract_of
from tests.parity.corpus import Template
from tests.parity.hosts import SESSIONS
from tests.parity.naming import cause_of
from tests.parity.observation import Observation, observations
from tests.parity.records import Records
from tests.parity.weights import cut_folder


@dataclass(slots=True)
class Results:
    """What was observed, by engine and template. causes: by engine, how often each made another prompt."""

    templates: Sequence[Template]
    cases: Sequence[Case] = CASES
    observed: dict[tuple[str, Template], Sequence[Observation]] = field(default_factory=dict)
    causes: dict[str, Counter[str]] = field(default_factory=dict)

    def of(self, engine: str) -> Iterator[tuple[Template, Sequence[Observation]]]:
        """Those of *engine*, in the order of the templates."""
        return ((one, self.observed[engine, one]) for one in self.templates if (engine, one) in self.observed)


def run(
    engines: Sequence[str],
    templates: Sequence[Template],
    records: Records | None,
    say: Callable[[str], None],
    cases: Sequence[Case] = CASES,
) -> Results:
    """The results; what *records* have is taken from there, and what is new is put there."""
    tokenizer = Tokenizer.read(cut_folder())
    contracts = {template: contract_of(template, tokenizer) for template in templates}
    results = Results(templates, cases)
    for engine in engines:
        missing: list[Template] = []
        for template, contract in contracts.items():
            kept = records.read(engine, contract) if records is not None else None
            if kept is None:
                missing.append(template)
            else:
                results.observed[engine, template] = kept
        say(f"{engine}: {len(templates) - len(missing)} of {len(templates)} templates were observed before")
        if missing:
            for template, observed in _observed(engine, missing, contracts, tokenizer, cases, say):
                results.observed[engine, template] = observed
                if records is not None:
                    records.write(engine, contracts[template], observed)
        results.causes[engine] = _causes(results, engine, contracts, tokenizer)
    return results


def _causes(
    results: Results, engine: str, contracts: Mapping[Template, Contract], tokenizer: Tokenizer
) -> Counter[str]:
    cases = {case.name: case for case in results.cases}
    return Counter(
        cause
        for template, observed in results.of(engine)
        for one in observed
        if (cause := cause_of(one, cases[one.case], contracts[template], tokenizer))
    )


def _observed(
    engine: str,
    templates: Sequence[Template],
    contracts: Mapping[Template, Contract],
    tokenizer: Tokenizer,
    cases: Sequence[Case],
    say: Callable[[str], None],
) -> Iterator[tuple[Template, list[Observation]]]:
    sessions = SESSIONS[engine]([contracts[template] for template in templates])
    with closing(sessions):
        for number, (template, session) in enumerate(zip(templates, sessions, strict=True), 1):
            began = time.monotonic()
            observed = observations(session, tokenizer, cases)
            say(f"{engine}: {number} of {len(templates)}: {template.name} ({time.monotonic() - began:.1f} s)")
            yield template, observed
