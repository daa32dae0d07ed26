"""Hostile templates in a running gateway: stopped, told, and of no consequence to anybody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.contracts import TAME, contract_in
from tests.gateways import Gateway, fake_model, running_gateway

CHAT = "/v1/chat/completions"
WHEN_TOLD = "{{% if messages[0].content == 'go' %}}{}{{% endif %}}" + TAME.replace("{", "{{").replace("}", "}}")
HOSTILE = {
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{% set x = namespace(t='x') %}{% for a in range(99) %}{% set x.t = x.t ~ x.t %}{% endfor %}",
    "uninterruptible": "{{ '%1000000000d' % 7 }}{{ 9 ** 9 ** 9 }}",
}
ESCAPING = "{{ ''.__class__.__mro__[1].__subclasses__() }}"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A model for each hostile template, and *tame*; all of them are given finished prompts."""
    folder = tmp_path_factory.mktemp("hostile")
    texts = {**{name: WHEN_TOLD.format(text) for name, text in HOSTILE.items()}, "tame": TAME}
    texts["escaping"] = WHEN_TOLD.format(ESCAPING)
    models = {
        name: fake_model(
            folder,
            template={
                "contract": str(contract_in(folder, name, templates={"default": text})),
                "parity": "off",
                "mode": "strict",
            },
        )
        for name, text in texts.items()
    }
    with running_gateway(folder, models) as running:
        yield running


def said(gateway: Gateway, model: str, text: str) -> tuple[int, str | None]:
    """Status and error code of one chat."""
    answer = gateway.ask("POST", CHAT, json={"model": model, "messages": [{"role": "user", "content": text}]})
    return answer.status_code, (answer.json().get("error") or {}).get("code")


@pytest.mark.parametrize("model", sorted(HOSTILE))
def test_a_hostile_template_is_stopped_while_others_answer(gateway: Gateway, model: str) -> None:
    """Its own request is a 500 that names it; those of another model are answered meanwhile, and its own afterwards."""
    outcome: list[tuple[int, str | None]] = []
    hostile = threading.Thread(target=lambda: outcome.append(said(gateway, model, "go")))
    hostile.start()
    others = [said(gateway, "tame", "hi") for _ in range(3)]
    hostile.join()
    assert outcome == [(500, "template_stopped")]
    assert others == [(200, None)] * 3
    assert said(gateway, model, "hi") == (200, None)


def test_a_template_that_reaches_for_python_is_refused(gateway: Gateway) -> None:
    """The sandbox gives it nothing, and the client is told that there is no prompt."""
    assert said(gateway, "escaping", "go") == (400, "template_refused")
    assert said(gateway, "escaping", "hi") == (200, None)
