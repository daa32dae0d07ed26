"""A linear template as Go text/template, which Ollama renders chats with where a model has a TEMPLATE.

Source: template/template.go of Ollama 0.32.15 (`Execute`, `collate`). What is rendered gets ``.Messages`` with
``.Role`` and ``.Content``, among which the system messages stay, and in which messages of one role that follow one
another have become one, joined by an empty line. ``.System``, all system messages joined, is not used: it cannot tell
an empty system message from none.

Every literal is a quoted Go string within an action. So Jinja's or Go's own braces in it are nothing special, no trim
marker can reach it, and it holds only characters that Ollama's Modelfile keeps (parser/parser.go drops what Go's
``strconv.IsPrint`` is not true of, a zero-width space for one).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from chat_templates.conversation import Conversation
from chat_templates.probing import END, START, Linear, NoPlace
from chat_templates.refusals import Unwritable

JOINT = "\n\n"
"""What Ollama puts between messages of one role that follow one another."""

_ORDER = (START, "system", "user", "assistant")
_ESCAPES: Mapping[str, str] = {"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"}


@dataclass(frozen=True, slots=True)
class GoTemplate:
    """The template. text: for a Modelfile's TEMPLATE, or the field of that name in ``POST /api/create``."""

    linear: Linear
    text: str

    def prompt(self, conversation: Conversation) -> str:
        """The prompt that Ollama makes with it. Raises NoPlace."""
        return _prompt(self.linear, collated(conversation))


def go_template(linear: Linear, bos: str = "") -> GoTemplate:
    """*linear* in Go. bos: what the tokenizer itself puts before every prompt, so that the template must not.

    Raises Unwritable where a conversation may begin without it: the engine would add what the template has not.
    """
    without = {
        border: text.removeprefix(bos) if border[0] == START else text for border, text in linear.borders.items()
    }
    if any(not text.startswith(bos) for (before, _), text in linear.borders.items() if before == START):
        raise Unwritable(
            f"the tokenizer puts {bos!r} before every prompt, and the template does not begin with it; write the GGUF"
            " anew with tokenizer.ggml.add_bos_token = false"
        )
    given = Linear(without)
    return GoTemplate(given, "".join(_lines(given)))


def collated(conversation: Conversation) -> list[tuple[str, str]]:
    """Role and content of each message as the template gets them. Raises NoPlace for what Ollama refuses."""
    if conversation.tools:
        raise NoPlace("tools")  # 400 "does not support tools", server/routes.go, for a TEMPLATE without .Tools
    messages: list[tuple[str, str]] = []
    for message in conversation.messages:
        for content in _contents(message.get("content")):
            if messages and messages[-1][0] == message["role"] != "tool":
                messages[-1] = (message["role"], messages[-1][1] + JOINT + content)
            else:
                messages.append((message["role"], content))
    return messages


def _contents(content: object) -> Iterator[str]:
    """openai/openai.go (`FromChatRequest`): one message for each part."""
    if content is None:
        yield ""
    elif isinstance(content, str):
        yield content
    elif isinstance(content, Sequence):
        for part in content:
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                raise NoPlace("a part that is no text")
            yield part["text"]
    else:
        raise NoPlace("a content that is no text")


def _prompt(linear: Linear, messages: Sequence[tuple[str, str]]) -> str:
    pieces, before = [], START
    for role, content in messages:
        pieces += [_border(linear, before, role), content]
        before = role
    return "".join([*pieces, _border(linear, before, END)])


def _border(linear: Linear, before: str, after: str) -> str:
    """The text that the template has for a border: where none is known, that of the role's usual place."""
    chosen = _fallback(linear, before, after)
    if chosen is None:
        raise NoPlace(f"{after} after {before}")
    return linear.borders[chosen]


def _fallback(linear: Linear, before: str, after: str) -> tuple[str, str] | None:
    """Which border stands for one that is not known; None where there is to be an error.

    To count tokens Ollama renders the tail of a long conversation, which may begin with an answer (server/prompt.go,
    `chatPrompt`); the head of an answer is the same there. All else that is not known is an error.
    """
    if (before, after) in linear.borders:
        return before, after
    return ("user", "assistant") if after == "assistant" else None


def _lines(linear: Linear) -> Iterator[str]:
    """One line for each role. A line end before or after an action is trimmed by its marker, and never a literal."""
    yield f'{{{{- $before := "{START}" -}}}}\n'
    yield "{{- range .Messages -}}\n"
    for number, role in enumerate(("system", "user", "assistant")):
        test = f'{{{{- {"else if" if number else "if"} eq .Role "{role}" -}}}}'
        yield f"{test}{''.join(_openings(linear, role))}\n"
    yield "{{- else -}}" + _error("unknown role") + "\n"
    yield "{{- end -}}\n{{- $before = .Role -}}\n{{- end -}}\n"
    yield "".join(_choice(linear, END)) + "\n"


def _openings(linear: Linear, role: str) -> Iterator[str]:
    yield from _choice(linear, role)
    yield "{{- .Content -}}"


def _choice(linear: Linear, after: str) -> Iterator[str]:
    """The text before *after*, by what came before it; the commonest is what stands in ``else``."""
    texts: dict[str | None, list[str]] = {}
    for before in _ORDER:
        if before == after or (before, after) == (START, END):
            continue
        chosen = _fallback(linear, before, after)
        texts.setdefault(None if chosen is None else linear.borders[chosen], []).append(before)
    *special, (usual, _) = sorted(texts.items(), key=lambda entry: (len(entry[1]), entry[0] is not None))
    for number, (text, befores) in enumerate(special):
        tests = " ".join(f'"{before}"' for before in befores)
        yield f"{{{{- {'else if' if number else 'if'} eq $before {tests} -}}}}{_literal(text, after)}"
    if not special:
        yield _literal(usual, after)
    elif usual != "":
        yield f"{{{{- else -}}}}{_literal(usual, after)}"
    if special:
        yield "{{- end -}}"


def _literal(text: str | None, after: str) -> str:
    if text is None:
        return _error(f"misplaced {after}")
    return f"{{{{- {quoted(text)} -}}}}" if text else ""


def _error(reason: str) -> str:
    """An action that fails. Go has no function that does; an index beyond a text's end ends the rendering.

    Go's message quotes the first 20 characters of what failed (text/template/exec.go, `ErrorContext`).
    """
    return f"{{{{- index {quoted(reason)} 99 -}}}}"


def quoted(text: str) -> str:
    """*text* as an interpreted string literal of Go (https://go.dev/ref/spec#String_literals)."""
    return '"' + "".join(_escaped(one) for one in text) + '"'


def _escaped(one: str) -> str:
    if one in _ESCAPES:
        return _ESCAPES[one]
    if one.isprintable():
        return one
    return f"\\u{ord(one):04x}" if ord(one) <= 0xFFFF else f"\\U{ord(one):08x}"
