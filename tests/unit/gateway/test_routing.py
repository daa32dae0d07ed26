"""Names to routes: models, aliases, and what is said of a name that is neither."""

from __future__ import annotations

import pytest

from backends.adapter import Served
from backends.engines import ADAPTERS
from backends.settings import BackendSettings
from gateway.errors import NotAllowed, UnknownModel
from gateway.keys import ANYBODY, Caller
from gateway.routing import Route, Routes


def route(model: str, *aliases: str) -> Route:
    """A route of vLLM."""
    return Route(model, aliases, BackendSettings(model, "vllm"), ADAPTERS["vllm"], Served(model))


BASE, TUNED, OTHER = route("Qwen2.5-Base", "base"), route("Qwen2.5-Tuned", "default"), route("llama")
ROUTES = Routes([BASE, TUNED, OTHER])
GUEST = Caller("guest", ("default",))


@pytest.mark.parametrize(
    ("name", "found"), [("Qwen2.5-Base", BASE), ("base", BASE), ("default", TUNED), ("llama", OTHER)]
)
def test_a_name_or_an_alias_is_found(name: str, found: Route) -> None:
    """Each of a model's names leads to its route."""
    assert ROUTES.resolve(name, ANYBODY) is found
    assert name in found.names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen2.5-base", "there is no model 'qwen2.5-base'; did you mean 'Qwen2.5-Base' or 'Qwen2.5-Tuned' or 'base'?"),
        ("defualt", "there is no model 'defualt'; did you mean 'default'?"),
        ("gpt-4o", "there is no model 'gpt-4o'; GET /v1/models lists those there are"),
        ("a\nb", "there is no model 'a\\nb'; GET /v1/models lists those there are"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, message: str) -> None:
    """The nearest names are suggested whatever their case; without any, the list is pointed to."""
    with pytest.raises(UnknownModel) as caught:
        ROUTES.resolve(name, ANYBODY)
    assert caught.value.message == message
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")


def test_a_long_name_is_cut() -> None:
    """A name of a megabyte does not come back whole."""
    with pytest.raises(UnknownModel) as caught:
        ROUTES.resolve("x" * 1_000_000, ANYBODY)
    assert len(caught.value.message) < 200


def test_a_key_sees_and_opens_its_own_models_only() -> None:
    """A key that opens one alias opens that model by all its names, and is shown and suggested no other."""
    assert ROUTES.visible(GUEST) == [TUNED]
    assert ROUTES.visible(ANYBODY) == [BASE, TUNED, OTHER]
    assert ROUTES.resolve("Qwen2.5-Tuned", GUEST) is TUNED
    with pytest.raises(NotAllowed, match="the key 'guest' may not use the model 'llama'"):
        ROUTES.resolve("llama", GUEST)
    with pytest.raises(UnknownModel) as caught:
        ROUTES.resolve("Qwen2.5-Bas", GUEST)
    assert "Base" not in caught.value.message.removeprefix("there is no model 'Qwen2.5-Bas'")
