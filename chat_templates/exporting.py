"""Exporting: the files an engine takes a template in, decided here and written by whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chat_templates.battery import Feature
from chat_templates.derivation import CARRIED, Comparison, Derivation, derive
from chat_templates.forms.gguf_file import read_header, rewrite
from chat_templates.forms.go_template import go_template
from chat_templates.forms.ignored import ignored_by_ollama, ignored_by_vllm, is_gguf
from chat_templates.forms.lmdeploy_fields import lmdeploy_fields
from chat_templates.forms.lmdeploy_overlay import CONFIG_NAME, overlay_copies, overlay_texts
from chat_templates.forms.modelfile import modelfile
from chat_templates.forms.pinned_jinja import pinned
from chat_templates.probing import Render, closings_of
from chat_templates.refusals import CannotDerive, Code, Refusal, Unwritable
from chat_templates.rendering import DEFAULT, Renderer
from chat_templates.tokenizing import Tokenizer
from chat_templates.vocabulary import long_stops, missing_markers


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be exported, and for which model.

    weights: a GGUF file or a model's folder, None where the form needs none. out: where it will be. adds_bos: whether
    the tokenizer puts the BOS before every prompt; None to be found in a GGUF file. stops: texts that end an answer.
    needs, accept: as in `derive`.
    """

    renderer: Renderer
    render: Render = Renderer.render
    tokenizer: Tokenizer | None = None
    weights: Path | None = None
    out: Path | None = None
    adds_bos: bool | None = None
    stops: Sequence[str] = ()
    needs: Collection[Feature] = CARRIED
    accept: Collection[Code] = ()


@dataclass(frozen=True, slots=True)
class Export:
    """What comes of an order. text: the one file there is, which may be printed instead. write: makes it at ``out``.

    usage: how the engine is given it. notes: what a person has to know. beyond: as `Derivation.comparisons`, where the
    form is not Jinja; the core is exact.
    """

    text: str | None
    write: Callable[[Path], None]
    usage: str
    notes: tuple[str, ...] = ()
    beyond: Mapping[str, Comparison] = field(default_factory=dict)


def export_vllm(order: Order) -> Export:
    """A Jinja file for ``vllm serve --chat-template``. Raises CannotDerive, Unwritable and ModelFolderUnreadable."""
    if order.weights is not None and order.weights.is_dir():
        _refuse(ignored_by_vllm(order.weights))
    return _jinja(order, "vllm serve … --chat-template {out} --chat-template-content-format auto --tokenizer-mode hf")


def export_llamacpp(order: Order) -> Export:
    """A Jinja file for ``llama-server --chat-template-file``. Raises CannotDerive and Unwritable."""
    return _jinja(order, "llama-server … --jinja --chat-template-file {out} --no-reasoning-preserve")


def export_gguf(order: Order) -> Export:
    """A copy of the GGUF file ``weights`` with the template in it. Raises CannotDerive and Unwritable."""
    templates, weights = _pinned(order), _weights(order)
    read_header(weights)
    usage = "llama-server -m {out}; in a Modelfile: FROM {out}, without TEMPLATE, and OLLAMA_GO_TEMPLATE=0"
    return Export(None, lambda out: rewrite(weights, out, templates), usage)


def export_lmdeploy(order: Order) -> Export:
    """A folder for LMDeploy that holds the Jinja template itself. Raises CannotDerive and Unwritable."""
    templates, copies = _pinned(order), dict(overlay_copies(_weights(order)))

    def write(out: Path) -> None:
        contents = {name: path.read_bytes() for name, path in copies.items()}
        contents |= {name: text.encode("utf-8") for name, text in overlay_texts(out.absolute(), templates).items()}
        for name, content in contents.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    note = "the folder names its own place; where it is moved, export it anew"
    return Export(None, write, f"lmdeploy serve api_server … --chat-template {{out}}/{CONFIG_NAME}", (note,))


def export_lmdeploy_json(order: Order) -> Export:
    """LMDeploy's eleven fields. Raises CannotDerive and Unwritable."""
    derivation = _derived(order)
    closings = closings_of(order.render, order.renderer)
    stops = order.stops or _stops(order, closings)
    if order.tokenizer is not None:
        _refuse(long_stops(stops, order.tokenizer))
    form = lmdeploy_fields(derivation.linear, closings, name="unigate", stop_words=stops)
    accepted = [*derivation.accepted, *derivation.check(form.prompt, order.accept)]
    notes = (*_notes(derivation, accepted), _ending(stops))
    usage = "lmdeploy serve api_server … --chat-template {out}"
    return _text(form.text(), usage, notes, derivation.comparisons(form.prompt))


def export_ollama(order: Order) -> Export:
    """A Modelfile with a Go template. Raises CannotDerive and Unwritable."""
    weights = _weights(order)
    _refuse(ignored_by_ollama(weights))
    derivation = _derived(order)
    bos = order.renderer.special_tokens.get("bos_token", "")
    form = go_template(derivation.linear, bos if bos and _adds_bos(order, weights, derivation, bos) else "")
    stops = order.stops or _stops(order, closings_of(order.render, order.renderer))
    # what the engine adds is not in its text
    whole = go_template(derivation.linear)
    accepted = [*derivation.accepted, *derivation.check(whole.prompt, order.accept)]
    notes = (*_notes(derivation, accepted), _ending(stops))
    named = weights.absolute() if weights.exists() else weights
    usage = "ollama create NAME -f {out}"
    return _text(modelfile(str(named), form, stops), usage, notes, derivation.comparisons(whole.prompt))


EXPORTS: Mapping[str, Callable[[Order], Export]] = {
    "vllm": export_vllm,
    "llamacpp": export_llamacpp,
    "lmdeploy": export_lmdeploy,
    "lmdeploy-json": export_lmdeploy_json,
    "ollama": export_ollama,
    "gguf": export_gguf,
}
"""Every form by its name."""


def _refuse(refusal: Refusal | None) -> None:
    if refusal is not None:
        raise CannotDerive(refusal)


def _weights(order: Order) -> Path:
    if order.weights is None:
        raise Unwritable("--weights is missing: name the model this is for")
    return order.weights


def _pinned(order: Order) -> dict[str, str]:
    templates = pinned(order.renderer, order.render)
    if order.tokenizer is not None:
        _refuse(missing_markers(templates.values(), order.tokenizer))
    return templates


def _jinja(order: Order, usage: str) -> Export:
    templates = _pinned(order)
    if set(templates) != {DEFAULT}:
        named = ", ".join(sorted(templates))
        raise Unwritable(f"there are several templates ({named}), and this engine takes one file; name one of them")
    return _text(templates[DEFAULT], usage)


def _text(text: str, usage: str, notes: Sequence[str] = (), beyond: Mapping[str, Comparison] | None = None) -> Export:
    return Export(text, lambda out: _write_text(out, text), usage, tuple(notes), beyond or {})


def _write_text(out: Path, text: str) -> None:
    # bytes: no line end is translated
    out.write_bytes(text.encode("utf-8"))


def _derived(order: Order) -> Derivation:
    derivation = derive(order.renderer, order.render, needs=order.needs, accept=order.accept)
    if order.tokenizer is not None:
        _refuse(missing_markers(derivation.linear.borders.values(), order.tokenizer))
    return derivation


def _adds_bos(order: Order, weights: Path, derivation: Derivation, bos: str) -> bool:
    if order.adds_bos is not None:
        return order.adds_bos
    if is_gguf(weights):
        said = read_header(weights).values.get("tokenizer.ggml.add_bos_token")
        if isinstance(said, bool):
            return said
    if not any(text.startswith(bos) for text in derivation.linear.borders.values()):
        return False
    raise Unwritable(
        f"the template begins with {bos!r}, and whether the tokenizer adds one more is not known; write --add-bos or"
        " --no-add-bos (tokenizer.ggml.add_bos_token in the GGUF file)"
    )


def _stops(order: Order, closings: tuple[str, str]) -> list[str]:
    """Where answers end, as far as the template tells: what stands after one, and the EOS."""
    closing = closings[1].strip()
    eos = order.renderer.special_tokens.get("eos_token", "")
    found = [closing if closing and len(closing.split()) == 1 else "", eos]
    return list(dict.fromkeys(stop for stop in found if stop))


def _ending(stops: Sequence[str]) -> str:
    return f"answers end at: {', '.join(map(repr, stops)) or 'the EOS of the weights alone'}"


def _notes(derivation: Derivation, accepted: Sequence[Refusal]) -> Iterator[str]:
    yield from (f"accepted, {refusal}" for refusal in accepted)
    if not derivation.trim.are_none:
        rules = ", ".join(f"{role}: {rule}" for role, rule in derivation.trim.by_role().items() if rule != "none")
        yield f"exact only if the whitespace around contents is trimmed before they are sent ({rules})"
