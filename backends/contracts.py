"""Reading the contract that a model's operator has named, and seeing whether it belongs to the model's tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from backends.prompting import ContractChoice, Prompting
from backends.settings import BackendSettings
from backends.sources import HubSource
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
        prompting = read_prompting(backend.contract, backend.weights)
    except ContractUnusable:
        return backend
    if prompting.tokenizer is None and _is_yet_to_come(backend):
        # The first start downloads it, and sees then whether it is the contract's.
        prompting = replace(prompting, tokenizer=backend.weights)
    return replace(backend, prompting=prompting)


def _is_yet_to_come(backend: BackendSettings) -> bool:
    """Whether the weights are a folder that has not been downloaded yet."""
    weights = backend.weights
    return isinstance(backend.source, HubSource) and weights is not None and not weights.suffix and not weights.exists()


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
    return Prompting(contract, choice.file, folder, choice.policy, choice.mode, choice.sample)


def contract_problems(backend: BackendSettings) -> Sequence[str]:
    """Why *backend* cannot be started with its contract, now that its weights are there; none without one. Blocks."""
    prompting = backend.prompting
    if prompting is not None:
        # The contract itself is as it was read, whatever has become of its file since.
        folder = prompting.tokenizer
        fault = _tokenizer_problem(prompting.contract, prompting.file, folder) if folder is not None else None
        return () if fault is None else (fault,)
    if backend.contract is None:
        return ()
    try:
        read_prompting(backend.contract, backend.weights)
    except ContractUnusable as problem:
        return problem.problems
    # It was no good when the configuration was read: who renders and who shows its hash know nothing of it.
    return (f"{backend.contract.file}: reload the configuration to read it",)


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
