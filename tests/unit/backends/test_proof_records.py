"""Proofs that are kept, and what they are proofs of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.adapter import LaunchSpec
from backends.address import Address
from backends.openai_probe import openai_probe
from backends.prompting import Prompting
from backends.proof_records import ProofRecords, proof_key
from backends.settings import BackendSettings
from chat_templates.contract import Contract
from chat_templates.parity import Parity
from chat_templates.proof import Proof

PROOF = Proof(Parity("h", "vllm", {"text": ("native",)}), {"cases": []})


def test_only_the_very_same_is_read_again(tmp_path: Path) -> None:
    """A proof is found under its key; under another, or where there is none, it is not."""
    records = ProofRecords(tmp_path / "proofs")
    assert records.read("m#1", "k") is None
    records.write("m#1", "k", PROOF)
    assert records.read("m#1", "k") == PROOF
    assert records.read("m#1", "other") is None
    assert records.read("m", "k") is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"key": "k"}', '{"key": "k", "proof": {"modes": 3}}'])
def test_what_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    """A damaged file means another proof, and no error."""
    records = ProofRecords(tmp_path)
    records.write("m", "k", PROOF)
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert records.read("m", "k") is None


def test_a_folder_that_takes_nothing(tmp_path: Path) -> None:
    """What cannot be kept is not kept."""
    (tmp_path / "proofs").write_text("a file")
    ProofRecords(tmp_path / "proofs").write("m", "k", PROOF)


def key(
    weights: Path, *, version: str = "1", port: int = 4000, flag: str = "a", changed: Callable[[Any], Any] = lambda x: x
) -> str:
    contract = Contract("c", {"default": "{{ messages }}"}, "here")
    prompting = changed(Prompting(contract, Path("/c")))
    backend = BackendSettings("m", "vllm", weights, prompting=prompting)
    address = Address(host="127.0.0.1", port=port)
    argv = ("vllm", "--port", str(port), "--flag", flag)
    return proof_key(backend, prompting, LaunchSpec(address, openai_probe(backend), argv), version)


def test_what_a_proof_is_of(tmp_path: Path) -> None:
    """Another version, flag, contract, mode or weight file is another proof; another port, or policy, is not."""
    (tmp_path / "w").write_text("1")
    first = key(tmp_path)
    assert first == key(tmp_path, port=4001)
    assert first == key(tmp_path, changed=lambda prompting: replace(prompting, policy="warn"))
    others = [
        key(tmp_path, version="2"),
        key(tmp_path, flag="b"),
        key(tmp_path, changed=lambda prompting: replace(prompting, mode="strict")),
        key(tmp_path, changed=lambda one: replace(one, contract=replace(one.contract, free=("x",)))),
    ]
    (tmp_path / "w").write_text("12")
    others.append(key(tmp_path))
    assert len({first, *others}) == 6
