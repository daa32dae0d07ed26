"""Hostile templates: each is refused or stopped, and whoever rendered it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from backends.render_pool import KNOWN_RENDERERS, RenderLimits, RenderPool, TemplateStopped
from chat_templates.conversation import Conversation, ConversationInvalid
from chat_templates.rendering import Renderer, TemplateBroken, TemplateRefused

LIMITS = RenderLimits()
MARGIN_S = 4.0
"""What a loaded machine may add to the deadline; the tests assert on outcomes, and on this only that they come soon."""

HELLO = Conversation([{"role": "user", "content": "hello"}])
TAME = Renderer.of("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")

ENDLESS = {
    "nested ranges": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "nested ranges that print": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "three small loops": "{% for i in range(9999) %}{% for j in i|string * 999 %}{% for k in j * 9999 %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "macros that double": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% set ns = namespace(l=[]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}"
    "{% for x in ns.l recursive %}{{ loop(x) }}{% endfor %}",
    "caller that calls itself": "{% macro m(n) %}{{ caller(n) }}{{ caller(n) }}{% endmacro %}"
    "{% macro f(n) %}{% if n %}{% call(k) m(n - 1) %}{{ f(k) }}{% endcall %}{% endif %}{% endmacro %}{{ f(60) }}",
    "search in a list, again and again": "{% set l = range(100000)|list %}{% for i in range(100000) %}"
    "{% if -1 in l %}x{% endif %}{% endfor %}",
    "sorting": "{% for i in range(100000) %}{% set x = range(100000)|sort(reverse=true)|list %}{% endfor %}",
    "a power of powers": "{{ (9 ** 9 ** 9) % 7 }}{{ 9 ** (9 ** 9) }}",
    "a product that grows": "{% set ns = namespace(n=3) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}"
    "{% endfor %}",
    "lorem ipsum": "{{ lipsum(n=100000) }}",
    "words that wrap": "{{ ('x ' * 5000000)|wordwrap(1) }}",
    "a text as a number": "{% for i in range(100000) %}{% set x = (i|string * 800)|int ** 9 %}{% endfor %}",
    "an endless generator": "{% set c = cycler('x') %}{% for i in range(100000) %}{% for j in range(100000) %}"
    "{{ c.next() }}{% endfor %}{% endfor %}",
    "a conversation that never ends": "{% for a in messages * 100000 %}{% for b in messages * 100000 %}{% endfor %}"
    "{% endfor %}",
}

GREEDY = {
    "a text times a billion": "{{ 'a' * 10 ** 9 }}",
    "a list times a billion": "{{ ([0] * 10 ** 9)|length }}",
    "a text that doubles": "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}"
    "{% endfor %}",
    "a text that doubles with plus": "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s + ns.s %}"
    "{% endfor %}",
    "a block that doubles": "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}"
    "{% endset %}{% endfor %}",
    "a wide number": "{{ '%1000000000d' % 1 }}",
    "a wide number by filter": "{{ '%01000000000d'|format(1) }}",
    "a wide field": "{{ '{:>1000000000}'.format('x') }}",
    "a wide field in a mapping": "{{ '{x:>1000000000}'.format_map({'x': 1}) }}",
    "center": "{{ 'x'|center(1000000000) }}",
    "ljust": "{{ 'x'.ljust(1000000000) }}",
    "zfill": "{{ 'x'.zfill(1000000000) }}",
    "tabs": "{{ '\\t'.expandtabs(1000000000) }}",
    "indent": "{{ 'x\ny'|indent(1000000000) }}",
    "json with an indent": "{{ [1]|tojson(indent=1000000000) }}",
    "a huge join": "{{ ('x' * 100000).join(range(100000)|map('string')) }}",
    "replace by a lot": "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
    "bytes of a number": "{{ (1).to_bytes(1000000000, 'big') }}",
    "lists that grow": "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}"
    "{% endfor %}",
    "names of lists": "{{ dict.fromkeys(range(100000)|list * 1000)|length }}{{ range(100000)|list * 10000 }}",
    "rows": "{{ range(100000)|batch(1000000000, 'x')|list }}",
    "more text than a prompt can be": "{{ 'a' * (17 * 1024 * 1024) }}",
}

ESCAPES = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by filter": "{{ (''|attr('__class__')).__mro__ }}",
    "class by item": "{{ ''['__class__']['__mro__'] }}",
    "attribute in a format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "attribute in a format by filter": "{{ '{0.__class__.__base__}'|attr('format')('')|list|length / 0 }}",
    "attribute in a format map": "{{ '{x.__class__.__mro__}'.format_map({'x': ''}) }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "globals of lipsum": "{{ lipsum.__globals__['os'].environ }}",
    "globals of a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "globals of joiner": "{{ joiner.__init__.__globals__.os }}",
    "the context": "{{ self._TemplateReference__context.environment }}",
    "the context by self": "{{ self.__init__.__globals__.__builtins__.open('/etc/passwd').read() }}",
    "the loop": "{% for i in [1] %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}",
    "frames of a generator": "{{ (messages|map('string')).gi_frame.f_globals }}",
    "code of a generator": "{{ (messages|map('string')).gi_code.co_consts }}",
    "map of attributes": "{{ ['']|map(attribute='__class__')|map(attribute='__mro__')|list|first|first }}",
    "append to the messages": "{{ messages.append({'role': 'system', 'content': 'obey'}) }}",
    "update of a message": "{{ messages[0].update({'content': 'obey'}) }}",
    "class of a namespace": "{% set ns = namespace(__class__=1) %}",
    "class set on a namespace": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__init__.__globals__ }}",
    "globals of raise_exception": "{{ raise_exception.__globals__.os }}",
    "code of strftime_now": "{{ strftime_now.__code__.co_consts[0] }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.environ }}",
    "from": "{% from 'os' import environ %}",
    "extends": "{% extends '/etc/passwd' %}",
    "an extension that is not there": "{% do messages.clear() %}",
    "mro of dict": "{{ dict.__class__.__mro__ }}",
    "mro of a type": "{{ namespace.mro() }}",
}

DEEP = {
    "deep recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "deep brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "deep blocks": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "deep loops": "{% for i in [1] %}" * 200 + "{% endfor %}" * 200,
    "deep lists": "{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = [ns.l] %}{% endfor %}"
    "{{ ns.l }}",
    "a number of many digits": "{{ 10 ** 5000 }}",
    "division by zero": "{{ 1 / 0 }}",
    "a range too big": "{% for i in range(10 ** 9) %}{% endfor %}",
}


@pytest.fixture
async def pool() -> AsyncIterator[RenderPool]:
    async with RenderPool() as pool:
        # whatever a template does is measured on a child that is there
        await pool.render(TAME, HELLO)
        yield pool


async def goes_on(pool: RenderPool) -> None:
    """The pool renders as before."""
    assert (await pool.render(TAME, HELLO)).text == "<user>hello"


@pytest.mark.parametrize("template", [pytest.param(text, id=name) for name, text in (ENDLESS | GREEDY).items()])
async def test_what_never_ends_or_fills_the_memory_is_stopped(pool: RenderPool, template: str) -> None:
    """A template without end, or without measure, is stopped soon, says so, and harms no later one."""
    started = time.monotonic()
    with pytest.raises((TemplateStopped, TemplateBroken)):
        await pool.render(Renderer.of(template), HELLO)
    assert time.monotonic() - started < LIMITS.deadline_s + MARGIN_S
    await goes_on(pool)


@pytest.mark.parametrize("template", [pytest.param(text, id=name) for name, text in ESCAPES.items()])
async def test_what_reaches_for_python_is_refused(pool: RenderPool, template: str) -> None:
    """A template that reaches for Python's internals, for files or for the conversation's own lists is refused."""
    with pytest.raises(TemplateBroken):
        await pool.render(Renderer.of(template), HELLO)
    await goes_on(pool)


@pytest.mark.parametrize("template", [pytest.param(text, id=name) for name, text in DEEP.items()])
async def test_what_python_cannot_do_is_an_error_of_the_template(pool: RenderPool, template: str) -> None:
    """What is too deep or too large for Python ends as an error of the template's, or with its process."""
    with pytest.raises((TemplateBroken, TemplateStopped)):
        await pool.render(Renderer.of(template), HELLO)
    await goes_on(pool)


async def test_the_loop_is_free_while_a_template_runs_for_ever(pool: RenderPool) -> None:
    """While a template without end is on its way to being stopped, everything else on the loop goes on."""
    stopping = asyncio.create_task(pool.render(Renderer.of(ENDLESS["nested ranges"]), HELLO))
    turns = 0
    while not stopping.done():
        await asyncio.sleep(0.005)
        turns += 1
    with pytest.raises(TemplateStopped):
        stopping.result()
    # one or two where the loop is held; how many more there are is the machine's
    assert turns > 10


async def test_another_child_renders_while_one_is_held() -> None:
    """In a pool of two, a template without end holds one child, and the other answers meanwhile."""
    async with RenderPool(2, replace(LIMITS, cpu_s=60, deadline_s=60)) as pool:
        await asyncio.gather(goes_on(pool), goes_on(pool))
        held = asyncio.create_task(pool.render(Renderer.of(ENDLESS["nested ranges"]), HELLO))
        await asyncio.sleep(0)
        await goes_on(pool)
        assert not held.done()
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held


async def test_a_child_that_gets_no_cpu_is_waited_for() -> None:
    """On a machine that is too busy to run the child a tame template is not taken for a hostile one."""
    async with RenderPool(1, replace(LIMITS, deadline_s=0.05)) as pool:
        await goes_on(pool)
        (child,) = children()
        os.kill(child, signal.SIGSTOP)
        rendering = asyncio.create_task(goes_on(pool))
        await asyncio.wait({rendering}, timeout=0.3)
        assert not rendering.done()
        os.kill(child, signal.SIGCONT)
        await rendering


async def test_a_child_that_never_runs_is_given_up() -> None:
    """A child that does nothing at all is not waited for without end."""
    async with RenderPool(1, replace(LIMITS, deadline_s=0.05, starved_s=0.2)) as pool:
        await goes_on(pool)
        (child,) = children()
        os.kill(child, signal.SIGSTOP)
        with pytest.raises(TemplateStopped):
            await pool.render(TAME, HELLO)
        await goes_on(pool)


async def test_what_is_within_the_limits_comes_back_unchanged(pool: RenderPool) -> None:
    """Text, variables, special tokens, the clock and odd values go through the process unchanged."""
    content = "你好 \x00 \ud800 \u2028 {{ }} " + "x" * 200_000
    given = Conversation(
        [{"role": "user", "content": content, "n": 10**30, "f": 0.1, "t": True, "list": [1, None, {"a": []}]}],
        tools=[{"type": "function"}],
        add_generation_prompt=False,
    )
    template = (
        "{{ a }}{{ messages|tojson }}{{ tools }}{{ bos_token }}{{ strftime_now('%F') }}{{ add_generation_prompt }}"
    )
    renderer = Renderer(
        {"default": "no", "tool_use": template},
        variables={"a": [1, "ü"]},
        special_tokens={"bos_token": "<s>"},
        clock=datetime(2024, 7, 26),
    )
    assert await pool.render(renderer, given) == renderer.render(given)


async def test_refusals_come_back_as_what_they_are(pool: RenderPool) -> None:
    """A refusal of the template's, an error with its line, and an unusable conversation are told apart."""
    with pytest.raises(TemplateRefused, match=r"^no system$"):
        await pool.render(Renderer.of("{{ raise_exception('no system') }}"), HELLO)
    with pytest.raises(TemplateBroken) as broken:
        await pool.render(Renderer.of("a\n{{ b.c }}"), HELLO)
    assert (broken.value.line, broken.value.message) == (2, "'b' is undefined")
    with pytest.raises(ConversationInvalid, match="exclude each other"):
        await pool.render(TAME, replace(HELLO, continue_final_message=True))
    with pytest.raises(ConversationInvalid, match="cannot be written as JSON"):
        await pool.render(TAME, Conversation([{"role": "user", "content": b"bytes"}]))


async def test_a_cancelled_job_leaves_nothing_for_the_next(pool: RenderPool) -> None:
    """Whoever stops waiting takes the answer with him: the next job gets its own."""
    job = asyncio.create_task(pool.render(Renderer.of(ENDLESS["nested ranges"]), HELLO))
    await asyncio.sleep(0.05)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    await goes_on(pool)


async def test_a_child_that_was_killed_is_replaced(pool: RenderPool) -> None:
    """A child that the machine has killed, for its memory perhaps, costs no request."""
    for child in children():
        os.kill(child, signal.SIGKILL)
    await goes_on(pool)


async def test_more_renderers_than_a_child_keeps(pool: RenderPool) -> None:
    """A child that has been shown more renderers than it keeps still renders each of them."""
    for round_ in range(2):
        for number in range(KNOWN_RENDERERS + 2):
            rendered = await pool.render(Renderer.of(f"{number}"), HELLO)
            assert rendered.text == f"{number}", round_


async def test_a_child_knows_no_environment(pool: RenderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the gateway's environment, such as a key, reaches the process in which templates run."""
    monkeypatch.setenv("UNIGATE_KEY", "secret")
    async with RenderPool() as another:
        before = children()
        await goes_on(another)
        (child,) = children() - before
        environ = Path(f"/proc/{child}/environ").read_bytes()
    assert b"secret" not in environ
    assert {entry.split(b"=")[0] for entry in environ.split(b"\0") if entry} <= {
        b"PYTHONPATH", b"PYTHONSAFEPATH", b"TZ", b"LC_CTYPE",
    }  # fmt: skip


async def test_a_child_is_limited_by_the_kernel(pool: RenderPool) -> None:
    """What a child may take beyond what it has when idle is bounded, and it may write no file at all."""
    (child,) = children()
    lines = Path(f"/proc/{child}/limits").read_text(encoding="ascii").splitlines()
    soft = {line[:26].strip(): line[26:].split()[0] for line in lines}
    pages = int(Path(f"/proc/{child}/statm").read_text(encoding="ascii").split()[0])
    idle_bytes = pages * resource.getpagesize()
    assert idle_bytes < int(soft["Max address space"]) <= idle_bytes + LIMITS.memory_mib * 1024 * 1024
    assert soft["Max file size"] == soft["Max core file size"] == "0"
    assert int(soft["Max cpu time"]) < 10


async def test_closing_ends_the_children() -> None:
    """A closed pool has no process left, not even one that is busy."""
    before = children()
    pool = RenderPool()
    await goes_on(pool)
    assert children() - before
    job = asyncio.create_task(pool.render(Renderer.of(ENDLESS["nested ranges"]), HELLO))
    await asyncio.sleep(0)
    job.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await job
    await pool.close()
    assert children() == before


def children() -> set[int]:
    """The render children this process has started."""
    pid = os.getpid()
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return {int(child) for child in started if b"backends.render_child" in Path(f"/proc/{child}/cmdline").read_bytes()}


async def test_a_template_that_is_stopped_has_failed_to_other_threads() -> None:
    """Who compares prompts in a thread is told of a stopped template as of any that fails."""
    endless = Renderer({"default": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"})
    async with RenderPool() as pool:
        render = pool.from_threads()
        with pytest.raises(TemplateBroken, match="it was stopped"):
            await asyncio.to_thread(render, endless, Conversation([{"role": "user", "content": "x"}]))
