"""A contract's hash covers what fixes the prompt, and its files keep every byte of it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.contract import Contract, MessageRules, Stop, TokenizerFacts, sha256_of
from chat_templates.contract_file import ContractInvalid, contract_text, read_contract, write_contract
from chat_templates.conversation import Conversation
from chat_templates.trimming import TrimRules

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["enable_thinking", "date_string", "mood", "x"])

CONTRACTS = st.builds(
    Contract,
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}", fullmatch=True),
    templates=st.dictionaries(st.sampled_from(["default", "tool_use"]), TEXTS, min_size=1),
    source=TEXTS,
    jinja2=TEXTS,
    pinned=st.dictionaries(NAMES, JSON, max_size=2),
    free=st.sampled_from([(), ("tone",), ("tone", "length")]),
    tokenizer=st.builds(
        TokenizerFacts,
        TEXTS,
        st.sampled_from(["from_template", "tokenizer", "none"]),
        st.dictionaries(st.sampled_from(["bos_token", "eos_token"]), TEXTS),
    ),
    messages=st.builds(
        MessageRules,
        parts=st.sampled_from(["as_given", "join_newline"]),
        trim=st.builds(TrimRules, user=st.sampled_from(["none", "left"])),
        system_default=st.none() | TEXTS,
    ),
    stop=st.builds(
        Stop, st.lists(st.integers(0, 10**6), max_size=3).map(tuple), st.lists(TEXTS, max_size=3).map(tuple)
    ),
    sampling=st.fixed_dictionaries(
        {}, optional={"temperature": st.floats(0, 2) | st.integers(0, 2), "top_k": st.integers(0, 99)}
    ),
    clock=st.sampled_from([None, "live", datetime(2024, 7, 26), datetime(2024, 7, 26, 1, 2, 3)]),
)

PLAIN = Contract(
    "plain",
    {"default": "{{ messages[0].content }}\n\n", "tool_use": "\r\n{{ tools }} \t"},
    "jinja",
    jinja2="3.1.6",
    pinned={"enable_thinking": False},
    free=("tone",),
    tokenizer=TokenizerFacts("ab", "from_template", {"bos_token": "<s>"}),
    stop=Stop((2, 1), ("<b>", "<a>")),
    sampling={"temperature": 1},
    clock=datetime(2024, 7, 26),
)


@given(CONTRACTS)
def test_a_contract_that_is_written_and_read_is_the_same(contract: Contract) -> None:
    """Whatever texts are in a contract, its files give back an equal one with the same hash."""
    with tempfile.TemporaryDirectory() as folder:
        read = read_contract(write_contract(contract, Path(folder)))
    assert read == contract
    assert read.hash == contract.hash


@given(CONTRACTS, CONTRACTS)
def test_the_hash_is_equal_where_the_prompt_is_fixed_alike(one: Contract, other: Contract) -> None:
    """Two contracts have one hash if and only if they differ in nothing but their name and source."""
    alike = replace(one, name="n", source="s") == replace(other, name="n", source="s")
    same_types = contract_text(replace(one, name="n", source="s")) == contract_text(
        replace(other, name="n", source="s")
    )
    assert (one.hash == other.hash) == (alike and same_types)


@given(CONTRACTS, TEXTS)
def test_names_and_sources_are_not_in_the_hash(contract: Contract, text: str) -> None:
    """A contract that is called otherwise, or came from elsewhere, is the same contract."""
    assert replace(contract, name=text, source=text).hash == contract.hash


@pytest.mark.parametrize(
    "change",
    [
        {"templates": {"default": "{{ messages[0].content }}\n", "tool_use": "\r\n{{ tools }} \t"}},
        {"templates": {"default": "{{ messages[0].content }}\n\n"}},
        {"jinja2": "3.1.7"},
        {"pinned": {"enable_thinking": True}},
        {"pinned": {}},
        {"pinned": {"enable_thinking": 0}},
        {"free": ()},
        {"tokenizer": TokenizerFacts("ac", "from_template", {"bos_token": "<s>"})},
        {"tokenizer": TokenizerFacts("ab", "none", {"bos_token": "<s>"})},
        {"messages": MessageRules(trim=TrimRules(user="both"))},
        {"messages": MessageRules(system_default="")},
        {"stop": Stop((1,), ("<b>", "<a>"))},
        {"sampling": {"temperature": 0.9}},
        {"clock": datetime(2024, 7, 27)},
        {"clock": "live"},
        {"clock": None},
    ],
)
def test_every_part_is_in_the_hash(change: dict[str, Any]) -> None:
    """Whatever fixes the prompt or its end changes the hash when it changes."""
    assert replace(PLAIN, **change).hash != PLAIN.hash


def test_orders_and_notations_are_not_in_the_hash() -> None:
    """The order of stops and keys says nothing, nor does 1 for 1.0 where a number with a fraction is meant."""
    turned = replace(
        PLAIN,
        templates=dict(reversed(list(PLAIN.templates.items()))),
        stop=Stop((1, 2, 2), ("<a>", "<b>")),
        sampling={"temperature": 1.0},
    )
    assert turned.hash == PLAIN.hash


def test_the_hash_is_this_one() -> None:
    """The hash of a contract that exists does not change with Unigate's version."""
    assert PLAIN.hash == "34d48a8a7082989d11f317cd3196a7c41d063591322ac11bbe2feccc7a4a5436"


def test_comments_and_file_names_are_for_people(tmp_path: Path) -> None:
    """A contract with other comments, key order and file names is the same contract."""
    path = write_contract(PLAIN, tmp_path)
    (tmp_path / "plain.jinja").rename(tmp_path / "other.jinja")
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["template"]["default"]["file"] = "other.jinja"
    path.write_text("# mine\n" + yaml.safe_dump(dict(reversed(document.items())), sort_keys=False), encoding="utf-8")
    assert read_contract(path).hash == PLAIN.hash


def test_a_contract_renders() -> None:
    """Its renderer has the pinned variables, the special tokens and the frozen clock."""
    text = "{{ bos_token }}{{ enable_thinking }}{{ strftime_now('%d %b %Y') }}"
    contract = replace(PLAIN, templates={"default": text})
    assert contract.renderer().render(Conversation([{"role": "user", "content": "x"}])).text == "<s>False26 Jul 2024"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("sampling:", "smapling:", ":{line}: smapling: is unknown; did you mean sampling?"),
        ("name: plain", "name: plain\nname: b", ":{next}: name: is set twice; remove one of them"),
        ("name: plain", "name: 7", ":{line}: name: is no text; put it in quotes"),
        ("source: jinja\n", "", ":3: lacks source"),
        ("unigate_contract: 1", "unigate_contract: 2", ":{line}: unigate_contract: is the form 2, and"),
        ("rules: transformers-5.23", "rules: r", ":{line}: renderer.rules: is none of transformers-5.23"),
        ("bos: from_template", "bos: yes", ":{line}: tokenizer.bos: is none of from_template, tokenizer, none"),
        ("  - 1\n", "  - -1\n", ":{line}: stop.token_ids[0]: is no token id"),
        ("  - 1\n", "  - true\n", ":{line}: stop.token_ids[0]: is no whole number"),
        ("temperature: 1.0", "temperature: .nan", ":{line}: sampling.temperature: is no finite number"),
        ("temperature: 1.0", "top_k: 1.5", ":{line}: sampling.top_k: is no whole number"),
        ("enable_thinking: false", "enable_thinking: 2024-01-01",
         ":{line}: variables.pinned.enable_thinking: is neither a text, a number, true, false nor null"),
        ("- tone", "- messages", "variables: names 'messages', which the conversation itself defines"),
        ("- tone", "- enable_thinking", "variables: has 'enable_thinking' both pinned and free"),
        ("user: none", "user: all", ":{line}: messages.trim.user: is none of none, both, left, right"),
        ("file: plain.jinja", "file: ../plain.jinja", ":{line}: template.default.file: is no file beside the contract"),
        ("file: plain.jinja", "file: gone.jinja", ": template: gone.jinja: No such file or directory"),
        ("clock: '2024-07-26T00:00:00'", "clock: soon",
         ':{line}: clock: is neither a date such as "2024-07-26" nor live'),
        ("source: jinja", "source: &a jinja\nmore: *a", ":{next}: is no YAML: an alias (*name) has no place"),
        ("source: jinja", "source: [", "is no YAML: "),
        ("source: jinja", "source: " + "[" * 40, ":{line}: is no YAML: it is nested more than 32 levels deep"),
        ("source: jinja", "source: \x07", ": is no YAML: special characters are not allowed"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_with_its_line(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    """Unknown keys, wrong types and impossible values are problems with a file, a line and what to do."""
    path = write_contract(PLAIN, tmp_path)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    line = text[: text.index(old)].count("\n") + 1
    with pytest.raises(ContractInvalid) as refusal:
        read_contract(path)
    assert f"{path}{complaint.format(line=line, next=line + 1)}" in str(refusal.value) or (
        not complaint.startswith(":") and complaint in str(refusal.value)
    )


def test_a_template_that_was_changed_is_not_the_contracts(tmp_path: Path) -> None:
    """One byte more in a template's file, and the contract is refused with what to do."""
    path = write_contract(PLAIN, tmp_path)
    with (tmp_path / "plain.jinja").open("ab") as opened:
        opened.write(b"\n")
    with pytest.raises(
        ContractInvalid, match=r"template.default.sha256: is not that of plain.jinja: .*import it again"
    ):
        read_contract(path)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """Who mends a contract sees everything that is wrong with it in one go."""
    path = write_contract(PLAIN, tmp_path)
    text = path.read_text(encoding="utf-8").replace("name: plain", "name: [1]").replace("live", "x")
    path.write_text(text.replace("bos: from_template", "bos: b").replace("free:", "fere:"), encoding="utf-8")
    with pytest.raises(ContractInvalid) as refusal:
        read_contract(path)
    problems = str(refusal.value).splitlines()
    assert [problem.split(": ")[1].split(":")[0] for problem in problems] == [
        "name", "variables.fere", "variables", "tokenizer.bos",
    ]  # fmt: skip


@pytest.mark.parametrize("content", ["", "[]", "\xff"])
def test_what_is_no_contract_says_so(tmp_path: Path, content: str) -> None:
    """A file that is empty, another document, or no text is refused in a sentence."""
    path = tmp_path / "a.contract.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ContractInvalid, match=r"is empty|is no mapping|is not UTF-8 text"):
        read_contract(path)


def test_a_name_stays_in_its_folder(tmp_path: Path) -> None:
    """A contract's name cannot lead out of the folder it is written to."""
    with pytest.raises(ContractInvalid, match="is no name for a file"):
        write_contract(replace(PLAIN, name="../x"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_templates_keep_their_bytes(tmp_path: Path) -> None:
    """Carriage returns and white space at a template's ends are in its file as they were."""
    write_contract(PLAIN, tmp_path)
    assert (tmp_path / "plain.tool_use.jinja").read_bytes() == b"\r\n{{ tools }} \t"
    assert sha256_of("\r\n{{ tools }} \t") == PLAIN.template_sha256["tool_use"]
