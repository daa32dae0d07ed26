"""The forms: what is written is what the engine's own language makes the prompt from."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.conversation import Conversation
from chat_templates.derivation import Derivation, derive
from chat_templates.forms.go_template import collated, go_template, quoted
from chat_templates.forms.lmdeploy_fields import LmdeployFields, lmdeploy_fields
from chat_templates.forms.modelfile import modelfile
from chat_templates.probing import NoPlace, closings_of
from chat_templates.refusals import CannotDerive, Code, Unwritable
from chat_templates.rendering import Renderer
from tests.oracle import field_prompt, go_text
from tests.unit.chat_templates.test_derivation import CHATML, LLAMA2

DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + CHATML
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
ODD = (
    "{% for m in messages %}{{ '{{ \"' }}{{ m.role }}\u200b\u3000\\n\r\t{{ '}}' }}{{ m.content }}-}}\n  {% endfor %}"
    '  {{- " \n{{- " }}'
)


def said(*messages: tuple[str, object]) -> Conversation:
    """A conversation."""
    return Conversation([{"role": role, "content": content} for role, content in messages])


def go_says(text: str, conversation: Conversation) -> str:
    """What Go makes of *text*."""
    messages = [{"Role": role, "Content": content} for role, content in collated(conversation)]
    return go_text.render(text, {"Messages": messages})


@pytest.mark.parametrize("template", [CHATML, LLAMA2, DEFAULT_SYSTEM, ODD])
def test_the_emitted_go_renders_the_core(template: str) -> None:
    """Braces, quotes, trim markers and whitespace of the template's own are nothing special in the Go we write."""
    derivation = derive(Renderer.of(template))
    form = go_template(derivation.linear)
    derivation.check(form.prompt)
    for case, wanted in derivation.core_said():
        assert go_says(form.text, case.conversation) == wanted.text


def test_go_refuses_a_system_message_where_the_template_does() -> None:
    """A system message that the template refuses ends the rendering in Go too, instead of being put somewhere."""
    form = go_template(derive(Renderer.of(NO_SYSTEM)).linear)
    for conversation in (said(("system", "a"), ("user", "b")), said(("user", "a"), ("narrator", "b"))):
        with pytest.raises(NoPlace):
            form.prompt(conversation)
        with pytest.raises(go_text.GoError):
            go_says(form.text, conversation)


def test_ollama_joins_messages_of_one_role() -> None:
    """What reaches a Go template are messages whose neighbours have other roles, and each part is a message."""
    parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    assert collated(said(("user", "a"), ("user", parts), ("assistant", None))) == [
        ("user", "a\n\nb\n\nc"),
        ("assistant", ""),
    ]
    for content in (42, [{"type": "image_url"}]):
        with pytest.raises(NoPlace):
            collated(said(("user", content)))


def test_the_bos_that_the_tokenizer_adds_is_left_out() -> None:
    """Where the tokenizer puts the BOS before every prompt, the template's own is left out; it must have one."""
    linear = derive(Renderer.of("<s>" + CHATML + "<s>")).linear
    assert go_says(go_template(linear, "<s>").text, said(("user", "<s>"))).startswith("<|im_start|>user\n<s><|im_end|>")
    with pytest.raises(Unwritable, match="the template does not begin with it"):
        go_template(derive(Renderer.of(CHATML)).linear, "<s>")


@given(st.text(max_size=20))
def test_a_quoted_text_is_itself(text: str) -> None:
    """Any text, quoted for Go, holds only what Ollama's Modelfile keeps, and is read back as it was."""
    shown = quoted(text)
    assert shown.isprintable()
    assert '"""' not in shown[1:-1]
    assert go_text.render("{{ " + shown + " }}", {}) == text


def test_a_modelfile_has_the_template_and_the_stops() -> None:
    """A Modelfile names the weights, the template in triple quotes and each stop text."""
    form = go_template(derive(Renderer.of(CHATML)).linear)
    text = modelfile("./model.gguf", form, ["<|im_end|>", "a\nb"])
    assert text.startswith('FROM ./model.gguf\nTEMPLATE """{{- $before')
    assert text.endswith('"""\nPARAMETER stop "<|im_end|>"\nPARAMETER stop """a\nb"""\n')


@pytest.mark.parametrize(("weights", "stop"), [("a\nb", []), ("m", ['say """']), ("m", ["a\u200b"])])
def test_what_a_modelfile_cannot_say_is_refused(weights: str, stop: list[str]) -> None:
    """What Ollama's parser would drop or end early is refused instead of written."""
    with pytest.raises(Unwritable):
        modelfile(weights, go_template(derive(Renderer.of(CHATML)).linear), stop)


def fields_of(template: str) -> tuple[Derivation, LmdeployFields]:
    """*template* in LMDeploy's fields."""
    renderer = Renderer.of(template)
    derivation = derive(renderer)
    return derivation, lmdeploy_fields(derivation.linear, closings_of(Renderer.render, renderer), name="mine")


def checked_fields_of(template: str) -> None:
    """Compare *template* in LMDeploy's fields with itself."""
    derivation, form = fields_of(template)
    derivation.check(form.prompt)


def test_lmdeploys_fields_are_the_template() -> None:
    """A template with a default system message is exact in fields, each where a person expects it."""
    derivation, form = fields_of(DEFAULT_SYSTEM)
    derivation.check(form.prompt)
    fields = json.loads(form.text())
    assert len(fields) == 11
    assert fields["meta_instruction"] == "Be kind."
    assert (fields["system"], fields["eosys"]) == ("<|im_start|>system\n", "<|im_end|>\n")
    assert (fields["user"], fields["eoh"]) == ("<|im_start|>user\n", "<|im_end|>\n")
    assert (fields["assistant"], fields["eoa"]) == ("<|im_start|>assistant\n", "<|im_end|>\n")
    for case, wanted in derivation.core_said():
        assert field_prompt.prompt(fields, case.conversation.messages) == wanted.text


def test_an_open_answer_is_left_open() -> None:
    """LMDeploy goes on with a last answer; the form knows it, so that it is never said to be a new turn."""
    _, form = fields_of(DEFAULT_SYSTEM)
    conversation = said(("user", "a"), ("assistant", "b"))
    assert form.prompt(conversation).endswith("<|im_start|>assistant\nb")
    assert form.prompt(conversation) == field_prompt.prompt(json.loads(form.text()), conversation.messages)


@pytest.mark.parametrize(
    ("code", "template"),
    [
        ("T10", CHATML),
        ("T05", DEFAULT_SYSTEM.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")),
        ("T08", NO_SYSTEM),
    ],
)
def test_what_the_fields_cannot_say_is_refused(code: Code, template: str) -> None:
    """No system block, another head for the answer, and refusals of the template's own each have their code."""
    with pytest.raises(CannotDerive) as refused:
        checked_fields_of(template)
    assert refused.value.refusal.code == code
    assert refused.value.refusal.template != refused.value.refusal.form


def test_what_the_template_refuses_may_be_accepted() -> None:
    """T08 may be accepted, by whoever refuses such conversations before they reach the engine."""
    derivation, form = fields_of(NO_SYSTEM)
    assert [one.code for one in derivation.check(form.prompt, accept={"T08"})] == ["T08"]
