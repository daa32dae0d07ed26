"""Reading the contract that a model's operator has named, and seeing whether it belongs to the model's tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from backends.prompting import ContractChoice, Prompting
from backends.settings import BackendSettings
from chat_templates.contract import Contract
from chat_templates.contract_file import ContractInvalid, read_contract, tokenizer_folder
from chat_templates.model_folder import TOKENIZER_FILE, ModelFolderUnreadable
from chat_templates.tokenizing import Tokenizer
from chat_templates.vocabulary import missing_markers


class ContractUnusable(Exception):
    """The contract cannot be used for this model; each of *problems* is a line for its operator."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def with_contracts(backends: Iterable[BackendSettings]) -> tuple[BackendSettings, ...]:
    """The *backends* with what is in their contracts now. Reads files, and blocks for some time.

    One whose contract cannot be used is left without: its start says why.
    """
    return tuple(_with_contract(backend) for backend in backends)


def _with_contract(backend: BackendSettings) -> BackendSettings:
    if backend.contract is None:
        return backend
    try:
        return replace(backend, prompting=read_prompting(backend.contract, backend.weights))
    except ContractUnusable:
        return backend


def read_prompting(choice: ContractChoice, weights: Path | None) -> Prompting:
    """What *choice* names, read, for a model whose weights are or will be at *weights*.

    The tokenizer is the one that is named, else the one beside the contract, else that of the weights. Blocks: a large
    tokenizer takes a second. Raises ContractUnusable.
    """
    try:
        contract = read_contract(choice.file)
    except ContractInvalid as problem:
        raise ContractUnusable(str(problem).splitlines()) from problem
    folder = choice.tokenizer or tokenizer_folder(choice.file) or _tokenizer_of(weights)
    if folder is not None:
        fault = _tokenizer_problem(contract, choice.file, folder)
        if fault is not None:
            raise ContractUnusable([fault])
    return Prompting(contract, choice.file, folder, choice.policy, choice.mode)


def contract_problems(backend: BackendSettings) -> Sequence[str]:
    """Why the contract of *backend* cannot be used, now that its weights are there; none without one. Blocks."""
    if backend.contract is None:
        return ()
    try:
        read_prompting(backend.contract, backend.weights)
    except ContractUnusable as problem:
        return problem.problems
    # It was no good when the configuration was read: who renders and who shows its hash know nothing of it.
    return (
        () if backend.prompting is not None else (f"{backend.contract.file}: could not be read when it was asked for",)
    )


def _tokenizer_of(weights: Path | None) -> Path | None:
    return weights if weights is not None and (weights / TOKENIZER_FILE).is_file() else None


def _tokenizer_problem(contract: Contract, file: Path, folder: Path) -> str | None:
    """Why the tokenizer in *folder* is not that of *contract*, which is in *file*."""
    path = folder / TOKENIZER_FILE
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if contract.tokenizer.sha256 and digest != contract.tokenizer.sha256:
            return (
                f"{path}: is another tokenizer than the contract's: its SHA-256 is {digest},"
                f" and {file} names {contract.tokenizer.sha256}"
            )
        missing = missing_markers(contract.templates.values(), Tokenizer.read(folder))
    except OSError as problem:
        return f"{path}: {problem.strerror}"
    except ModelFolderUnreadable as problem:
        return str(problem)
    return f"{file}: {missing}" if missing is not None else None
