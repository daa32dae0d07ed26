"""A contract that is named is read with its tokenizer, or told why not."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from backends.contracts import ContractUnusable, contract_problems, read_prompting, with_contracts
from backends.lifecycle import State
from backends.prompting import ContractChoice, Prompting
from backends.settings import BackendSettings
from backends.sources import HubSource
from chat_templates.contract import Contract, TokenizerFacts
from chat_templates.contract_file import tokenizer_folder, write_contract
from tests.oracle.folders import OWN, model_folder
from tests.unit.backends.fakes import living_backend, settings

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def named(folder: Path, template: str = TEMPLATE, sha256: str = "") -> ContractChoice:
    """A contract in *folder*, for the tokenizer with that digest."""
    return ContractChoice(
        write_contract(Contract("tuned", {"default": template}, "here", tokenizer=TokenizerFacts(sha256)), folder)
    )


def problems(choice: ContractChoice, weights: Path | None = None) -> tuple[str, ...]:
    with pytest.raises(ContractUnusable) as caught:
        read_prompting(choice, weights)
    assert contract_problems(BackendSettings("m", "vllm", weights, contract=choice)) == caught.value.problems
    return caught.value.problems


def test_the_tokenizer_is_the_nearest_one(tmp_path: Path) -> None:
    """It is the one that is named, else the one beside the contract, else that of the weights, else none."""
    tokenizer, weights = model_folder(tmp_path / "own", OWN), model_folder(tmp_path / "weights", OWN)
    choice = named(tmp_path, sha256=digest(tokenizer))
    assert read_prompting(choice, tmp_path / "m.gguf").tokenizer is None
    assert read_prompting(choice, None).tokenizer is None
    assert read_prompting(choice, weights).tokenizer == weights
    assert tokenizer_folder(choice.file) is None
    beside = tmp_path / "tuned.tokenizer"
    shutil.copytree(tokenizer, beside)
    assert tokenizer_folder(choice.file) == beside
    assert read_prompting(choice, weights).tokenizer == beside
    assert read_prompting(replace(choice, tokenizer=tokenizer), weights).tokenizer == tokenizer


def test_what_the_operator_says_goes_with_it(tmp_path: Path) -> None:
    """Policy and mode are the configuration's, the contract is the file's."""
    choice = replace(named(tmp_path), policy="warn", mode="strict")
    found = read_prompting(choice, None)
    assert found == Prompting(found.contract, choice.file, None, "warn", "strict")
    assert found.contract.templates == {"default": TEMPLATE}


def test_another_tokenizer_is_an_error_that_names_both(tmp_path: Path) -> None:
    """A tokenizer whose digest is not the contract's is refused, with both digests and both files."""
    weights = model_folder(tmp_path / "weights", OWN)
    choice = named(tmp_path, sha256="ab" * 32)
    (problem,) = problems(choice, weights)
    assert {str(weights / "tokenizer.json"), digest(weights), str(choice.file), "ab" * 32} <= set(
        problem.replace(",", " ").replace(": ", " ").split()
    )


def test_markers_that_the_vocabulary_lacks_are_refused(tmp_path: Path) -> None:
    """A template whose markers are no tokens belongs to another fine-tune (T11)."""
    weights = model_folder(tmp_path / "weights", OWN)
    choice = named(tmp_path, "<|im_start|>{{ messages[0].content }}", digest(weights))
    (problem,) = problems(choice, weights)
    assert problem.startswith(f"{choice.file}: T11: ")
    assert "<|im_start|>" in problem


def test_each_problem_is_a_line(tmp_path: Path) -> None:
    """What is wrong within a contract is told with its file and line, all of it."""
    choice = named(tmp_path)
    text = choice.file.read_text()
    choice.file.write_text(text.replace("parts: join_newline", "parts: never").replace("developer: system", "dev: x"))
    found = problems(choice)
    assert len(found) == 2
    assert all(problem.startswith(f"{choice.file}:") for problem in found)
    (tmp_path / "tuned.jinja").unlink()
    assert any("tuned.jinja: No such file" in problem for problem in problems(choice))


def test_a_model_without_a_usable_contract_is_left_to_its_start(tmp_path: Path) -> None:
    """Reading goes on past a contract that cannot be used; only reading it again makes its model startable."""
    choice = named(tmp_path)
    good = BackendSettings("a", "vllm", contract=choice)
    bad = BackendSettings("b", "vllm", contract=ContractChoice(tmp_path / "none.contract.yaml"))
    plain = BackendSettings("c", "vllm")
    read, unread, same = with_contracts([good, bad, plain])
    assert read.prompting == read_prompting(choice, None)
    assert (unread, same) == (bad, plain)
    assert [bool(contract_problems(one)) for one in (read, unread, same, good)] == [False, True, False, True]


def test_a_tokenizer_that_is_yet_to_be_downloaded(tmp_path: Path) -> None:
    """Of weights on a hub the tokenizer is taken as promised, and looked at when they are there."""
    tokenizer = model_folder(tmp_path / "own", OWN)
    choice, source = named(tmp_path, sha256=digest(tokenizer)), HubSource("hf", "org/m")
    weights = source.weights(tmp_path / "models")
    backend = BackendSettings("m", "vllm", weights, source, contract=choice)
    (read,) = with_contracts([backend])
    assert read.prompting is not None
    assert read.prompting.tokenizer == weights
    assert contract_problems(read) == (f"{weights / 'tokenizer.json'}: No such file or directory",)
    shutil.copytree(tokenizer, weights)
    assert contract_problems(read) == ()
    assert with_contracts([backend]) == (read,), "a reload finds nothing changed"
    (weights / "tokenizer.json").write_text("{}")
    (problem,) = contract_problems(read)
    assert "is another tokenizer than the contract's" in problem
    (one_file,) = with_contracts([replace(backend, weights=tmp_path / "models" / "m.gguf")])
    assert one_file.prompting is not None
    assert one_file.prompting.tokenizer is None


def test_a_contract_is_as_it_was_read(tmp_path: Path) -> None:
    """A start goes by what was read; what has become of the file since is for the next reload."""
    choice = named(tmp_path)
    (read,) = with_contracts([BackendSettings("m", "vllm", contract=choice)])
    choice.file.unlink()
    assert contract_problems(read) == ()


async def test_nothing_is_started_without_the_contract(tmp_path: Path) -> None:
    """A model whose contract cannot be used fails at its start, with the reason, and no engine is run for it."""
    backend = settings(tmp_path, contract=ContractChoice(tmp_path / "none.contract.yaml"))
    async with living_backend(tmp_path, backend) as world:
        await world.supervisor.request_start()
        await world.supervisor.settled(State.FAILED)
        diagnosis = world.supervisor.status().diagnosis
        assert diagnosis is not None
        assert (diagnosis.code, diagnosis.permanent) == ("contract_unusable", True)
        assert "none.contract.yaml: No such file or directory" in diagnosis.reason
        assert world.launcher.runs == []
