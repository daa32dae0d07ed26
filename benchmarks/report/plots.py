"""Plots as SVG text: lines, clouds, bars, with axes. No library, no script; colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 640, 260
LOG_SPAN = 1e4  # of a logarithmic axis: what is smaller is drawn at its end
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 12, 42


@dataclass(frozen=True, slots=True)
class Line:
    """One series. ``style``: ``line``, ``steps`` or ``dots``; ``colour``: 1 to 5 of the page's."""

    name: str
    points: Points
    colour: int = 1
    style: str = "line"
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """What is drawn. ``about``: one sentence for who cannot see it. ``marks``: (value on x, text) of vertical lines."""

    title: str
    about: str
    x_label: str
    y_label: str
    lines: Sequence[Line] = ()
    bars: Sequence[tuple[float, float, float]] = ()
    marks: Sequence[tuple[float, str]] = ()
    is_log_x: bool = False
    is_log_y: bool = False
    y_most: float | None = None
    shade: tuple[float, float] | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not self.bars and not any(line.points for line in self.lines)


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to pixels. ``ticks``: (value, label)."""

    low: float
    high: float
    is_log: bool
    ticks: tuple[tuple[float, str], ...]

    def share(self, value: float) -> float:
        """Where *value* lies between the ends, 0 to 1."""
        if self.is_log:
            value = max(value, self.low)
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def linear_axis(low: float, high: float, *, from_zero: bool = True, wanted: int = 6) -> Axis:
    """An axis that ends on round numbers."""
    low = min(0.0, low) if from_zero else low
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = round_step((high - low) / wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple((number * step, number_text(number * step, step)) for number in range(first, last + 1))
    return Axis(first * step, last * step, False, ticks)


def log_axis(low: float, high: float) -> Axis:
    """An axis of powers of ten, with 2 and 5 between if there are few. *low* is above 0."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    powers = [10.0**number for number in range(first, last + 1)]
    between = [power * part for power in powers[:-1] for part in (2, 5)] if last - first <= 2 else []
    ticks = tuple((value, number_text(value, value)) for value in sorted([*powers, *between]))
    return Axis(powers[0], powers[-1], True, ticks)


def round_step(rough: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    scale = 10.0 ** math.floor(math.log10(rough))
    return next(part * scale for part in (1, 2, 2.5, 5, 10) if part * scale >= rough * 0.999)


def number_text(value: float, step: float) -> str:
    """*value* with as many digits as *step* has."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:  # 2.5
        digits += 1
    text = f"{value:,.{digits}f}"
    return text.replace(",", "\u2009")


def draw(plot: Plot) -> str:
    """The plot as a ``<figure>``; a sentence instead when there is nothing to draw."""
    title = escape(plot.title)
    if plot.is_empty:
        return f'<figure><figcaption>{title}</figcaption><p class="none">Nothing to draw.</p></figure>'
    x, y = _axes(plot)
    across: Callable[[float], float] = lambda value: LEFT + x.share(value) * (WIDTH - LEFT - RIGHT)  # noqa: E731
    up: Callable[[float], float] = lambda value: HEIGHT - BOTTOM - y.share(value) * (HEIGHT - TOP - BOTTOM)  # noqa: E731
    parts = [
        f"<figure><figcaption>{title}</figcaption>{_legend(plot)}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(plot.about)}">'
    ]
    if plot.shade is not None:
        left, right = across(max(plot.shade[0], x.low)), across(min(plot.shade[1], x.high))
        parts.append(f'<rect class="shade" x="{left:.1f}" y="{TOP}" width="{max(0, right - left):.1f}" '
                     f'height="{HEIGHT - TOP - BOTTOM}"/>')  # fmt: skip
    parts += _grid(x, y, across, up)
    floor = HEIGHT - BOTTOM
    for left, right, value in plot.bars:
        if value:
            parts.append(
                f'<rect class="bar" x="{across(left):.1f}" y="{up(value):.1f}" '
                f'width="{max(0.5, across(right) - across(left) - 0.6):.1f}" height="{floor - up(value):.1f}"/>'
            )
    parts += [_series(line, across, up, y.high) for line in plot.lines if line.points]
    for value, text in plot.marks:
        if x.low <= value <= x.high:
            place = across(value)
            side = "end" if place > WIDTH * 0.7 else "start"
            shift = -4 if side == "end" else 4
            parts.append(
                f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{floor}"/>'
                f'<text class="marked" x="{place + shift:.1f}" y="{TOP + 9}" text-anchor="{side}">{escape(text)}</text>'
            )
    parts.append(
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(plot.x_label)}</text>"
        f'<text class="label" transform="translate(13 {(TOP + floor) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(plot.y_label)}</text></svg>'
    )
    parts += [f'<p class="note">{escape(note)}</p>' for note in plot.notes]
    return "".join(parts) + "</figure>"


def _axes(plot: Plot) -> tuple[Axis, Axis]:
    xs = [point[0] for line in plot.lines for point in line.points] + [end for bar in plot.bars for end in bar[:2]]
    ys = [point[1] for line in plot.lines for point in line.points] + [bar[2] for bar in plot.bars]
    high = max(ys) if plot.y_most is None else plot.y_most
    positive_x = [value for value in xs if value > 0]
    positive_y = [value for value in ys if value > 0]
    if plot.is_log_x and positive_x:
        x = log_axis(max(min(positive_x), max(positive_x) / LOG_SPAN), max(positive_x))
    else:
        x = linear_axis(min(xs), max(xs), from_zero=not plot.bars, wanted=8)
    y = (
        log_axis(min(positive_y), max(positive_y))
        if plot.is_log_y and positive_y
        else linear_axis(min(ys), high, wanted=5)
    )
    return x, y


def _grid(x: Axis, y: Axis, across: Callable[[float], float], up: Callable[[float], float]) -> list[str]:
    floor = HEIGHT - BOTTOM
    parts = []
    for value, text in y.ticks:
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(value):.1f}" y2="{up(value):.1f}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{up(value) + 3.5:.1f}" text-anchor="end">{text}</text>'
        )
    for value, text in x.ticks:
        parts.append(
            f'<line class="grid" x1="{across(value):.1f}" x2="{across(value):.1f}" y1="{TOP}" y2="{floor}"/>'
            f'<text class="tick" x="{across(value):.1f}" y="{floor + 14}" text-anchor="middle">{text}</text>'
        )
    return parts


def _series(line: Line, across: Callable[[float], float], up: Callable[[float], float], most: float) -> str:
    places = [(across(a), up(min(b, most))) for a, b in line.points]
    colour = f"c{line.colour}"
    if line.style == "dots":
        # one path of dots is a tenth of the size of so many circles
        dots = "".join(f"M{a:.1f} {b:.1f}h0" for a, b in places)
        return f'<path class="dots {colour}" d="{dots}"/>'
    first, *rest = places
    path = f"M{first[0]:.1f} {first[1]:.1f}"
    if line.style == "steps":
        path += "".join(f"H{a:.1f}V{b:.1f}" for a, b in rest)
    else:
        path += "".join(f"L{a:.1f} {b:.1f}" for a, b in rest)
    dash = " dashed" if line.is_dashed else ""
    points = ""
    if len(places) <= 24 and line.style == "line":
        points = f'<path class="dots {colour} big" d="{"".join(f"M{a:.1f} {b:.1f}h0" for a, b in places)}"/>'
    return f'<path class="line {colour}{dash}" d="{path}"/>{points}'


def _legend(plot: Plot) -> str:
    named = [line for line in plot.lines if line.name and line.points]
    if len(named) < 2 and not plot.shade:
        return ""
    items = [
        f'<span><i class="c{line.colour}{" dashed" if line.is_dashed else ""}"></i>{escape(line.name)}</span>'
        for line in named
    ]
    if plot.shade:
        items.append('<span><i class="shade"></i>steady window</span>')
    return f'<div class="legend">{"".join(items)}</div>'
