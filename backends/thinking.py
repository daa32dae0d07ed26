"""A model's thinking, told from its answer in the text that holds both: for engines that have no parser on the way by
which they are given a finished prompt."""

from __future__ import annotations

from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of text as it is shown: *thinking* or *content*, either may be empty."""

    thinking: str = ""
    content: str = ""


class ThinkSplitter:
    """Splits one answer's text, cut anywhere. *is_open*: the prompt ends within the thinking already.

    Thinking is what stands between the two marks at the answer's beginning. White space next to the marks belongs to
    neither, as the engines' own parsers have it.
    """

    def __init__(self, *, is_open: bool) -> None:
        self._state = "thinking" if is_open else "start"
        self._held = ""
        self._trims = is_open

    def feed(self, text: str) -> Piece:
        """What of the text so far can be shown; the rest is held until it is clear what it is."""
        self._held += text
        thinking = content = ""
        if self._state == "start":
            self._start()
        if self._state == "thinking":
            thinking = self._think()
        if self._state == "content":
            content = self._say()
        return Piece(thinking, content)

    def end(self) -> Piece:
        """What was held, when no more comes."""
        held, self._held = self._held, ""
        return Piece(thinking=held.rstrip()) if self._state == "thinking" else Piece(content=held)

    def _start(self) -> None:
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._state, self._trims = "thinking", True
            self._held = text[len(OPEN) :]
        elif not OPEN.startswith(text):
            self._state = "content"

    def _think(self) -> str:
        if self._trims:
            self._held = self._held.lstrip()
            self._trims = not self._held
        before, mark, after = self._held.partition(CLOSE)
        if mark:
            self._state, self._trims = "content", True
            self._held = after
            return before.rstrip()
        # The mark may have begun, and white space before it is not shown.
        keep = next(size for size in range(len(CLOSE) - 1, -1, -1) if self._held.endswith(CLOSE[:size]))
        shown = self._held[: len(self._held) - keep].rstrip()
        self._held = self._held[len(shown) :]
        return shown

    def _say(self) -> str:
        if self._trims:
            self._held = self._held.lstrip()
            self._trims = not self._held
        shown, self._held = self._held, ""
        return shown
