"""Keys: who is let in, to which models, and that no secret ever comes out again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.contract.conftest import Secrets
from tests.contract.test_errors import refusal
from tests.contract.test_openai_client import MESSAGES, TEXT
from tests.gateways import Gateway


@pytest.fixture
def owner(keyed: Gateway, keys: Secrets) -> Iterator[OpenAI]:
    with keyed.openai(keys.owner) as client:
        yield client


@pytest.fixture
def guest(keyed: Gateway, keys: Secrets) -> Iterator[OpenAI]:
    with keyed.openai(keys.guest) as client:
        yield client


def test_a_wrong_key(keyed: Gateway) -> None:
    """A key that is not ours is AuthenticationError, for answers and for the list."""
    with keyed.openai("sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="the API key is not one of this gateway's") as caught:
            client.chat.completions.create(model="chat", messages=MESSAGES)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    found = refusal(caught.value)
    assert (found["type"], found["code"]) == ("authentication_error", "invalid_api_key")
    assert caught.value.response.headers["www-authenticate"] == "Bearer"


async def test_a_wrong_key_streamed(keyed: Gateway) -> None:
    """A stream under a wrong key is AuthenticationError too."""
    async with keyed.async_openai("sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.chat.completions.create(model="chat", messages=MESSAGES, stream=True)


def test_no_key(keyed: Gateway) -> None:
    """Without a key the answer says how to send one."""
    answer = keyed.ask("POST", "/v1/chat/completions", json={"model": "chat"})
    assert answer.status_code == 401
    assert answer.json()["error"]["message"] == "no API key was sent; send it as 'Authorization: Bearer KEY'"


def test_a_key_is_asked_before_a_body_is_read(keyed: Gateway) -> None:
    """Who has no key learns nothing of what is wrong with the body, nor which models there are."""
    answer = keyed.ask("POST", "/v1/chat/completions", content=b"{", headers={"content-type": "text/plain"})
    assert answer.status_code == 401
    assert keyed.ask("GET", "/v1/models/nothing").status_code == 401


def test_a_key_that_opens_everything(owner: OpenAI) -> None:
    """The key of everything answers for every model and lists them all."""
    for model in ("chat", "private", "elsewhere"):
        answer = owner.chat.completions.create(model=model, messages=MESSAGES)
        assert answer.choices[0].message.content == TEXT
    assert [model.id for model in owner.models.list()] == ["chat", "private", "elsewhere"]


def test_a_key_for_some_models(guest: OpenAI) -> None:
    """A key that opens an alias opens that model, shows it alone, and suggests nothing else."""
    assert guest.chat.completions.create(model="public-chat", messages=MESSAGES).choices[0].message.content == TEXT
    assert guest.chat.completions.create(model="chat", messages=MESSAGES).choices[0].message.content == TEXT
    assert [model.id for model in guest.models.list()] == ["chat"]
    with pytest.raises(openai.NotFoundError) as caught:
        guest.chat.completions.create(model="privat", messages=MESSAGES)
    assert refusal(caught.value)["message"] == "there is no model 'privat'; GET /v1/models lists those there are"


def test_a_key_for_other_models(guest: OpenAI) -> None:
    """A model that the key does not open is PermissionDeniedError naming the key by its name."""
    with pytest.raises(openai.PermissionDeniedError) as caught:
        guest.chat.completions.create(model="private", messages=MESSAGES)
    assert refusal(caught.value)["message"] == "the key 'guest' may not use the model 'private'"
    assert (refusal(caught.value)["type"], refusal(caught.value)["code"]) == ("permission_error", "model_not_allowed")
    with pytest.raises(openai.PermissionDeniedError):
        guest.models.retrieve("private")


def test_the_log_names_the_key_by_its_name(keyed: Gateway, guest: OpenAI) -> None:
    """The access log says whose key it was."""
    guest.completions.create(model="chat", prompt="hi", extra_headers={"X-Request-ID": "whose"})
    assert " key=guest " in keyed.until_logged("id=whose ")


def test_an_external_server_gets_its_own_key_and_its_own_name(owner: OpenAI) -> None:
    """A request to somebody else's server carries the configured key, not the client's; the answer our model's name."""
    answer = owner.chat.completions.create(model="elsewhere", messages=MESSAGES)
    assert answer.model == "elsewhere"


def test_no_secret_in_logs_answers_or_engines(keyed: Gateway, keys: Secrets, owner: OpenAI, guest: OpenAI) -> None:
    """No key is in any log, any answer, any error, or the command line or environment of any engine process."""
    owner.chat.completions.create(model="chat", messages=MESSAGES)
    shown = [keyed.logged(), *(path.read_text() for path in (keyed.folder / "state").rglob("*.log"))]
    as_owner = {"authorization": f"Bearer {keys.owner}"}
    shown += [keyed.ask("GET", path, headers=as_owner).text for path in ("/metrics", "/v1/models", "/admin/backends")]
    shown += [keyed.ask("GET", path, headers=as_owner).text for path in ("/nothing", "/v1/models/nothing")]
    nearly = {"authorization": f"Bearer {keys.owner}x"}
    shown.append(keyed.ask("GET", "/v1/models", headers=nearly).text)
    with pytest.raises(openai.PermissionDeniedError) as caught:
        guest.chat.completions.create(model="private", messages=MESSAGES)
    shown.append(caught.value.response.text)
    engines = keyed.processes()
    assert {marker.partition(":")[0] for marker in engines.values()} == {"chat", "private"}
    for pid in engines:
        shown += [Path(f"/proc/{pid}/{file}").read_bytes().decode() for file in ("cmdline", "environ")]
    for secret in keys.all():
        assert all(secret not in text for text in shown)
