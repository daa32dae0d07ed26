"""Names to models: the board that says which backend answers to which name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from backends.adapter import Adapter, Served
from backends.settings import BackendSettings
from gateway.errors import NotAllowed, UnknownModel
from gateway.keys import Caller

SUGGESTIONS = 3


@dataclass(frozen=True, slots=True)
class Route:
    """One public model, the backend that serves it, and how that is asked for it.

    Of a model with replicas *backend* is the first of them: they differ in nothing but their names.
    """

    model: str
    aliases: tuple[str, ...]
    backend: BackendSettings
    adapter: Adapter
    served: Served
    parent: str | None = None
    """The model whose LoRA adapter this one is."""
    ignores_unsupported: bool = False
    """Parameters that the engine does not honour are left out; else a request with one is refused."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name it answers to, the model's own first."""
        return (self.model, *self.aliases)


class Routes:
    """All routes of one configuration."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple(routes)
        self._by_name = {name: route for route in self._routes for name in route.names}

    def adopt(self, others: Routes) -> None:
        """Become the *others*, at once: whoever asks from now on gets theirs."""
        self._routes, self._by_name = others._routes, others._by_name

    def contracts(self) -> dict[str, str]:
        """The hash of each model's contract, of those that have one."""
        return {
            route.model: route.backend.prompting.contract.hash
            for route in self._routes
            if route.backend.prompting is not None
        }

    def now(self, route: Route) -> Route:
        """The route of the same model as it stands now; *route* itself when its model is no longer there."""
        return self._by_name.get(route.model, route)

    def resolve(self, name: str, caller: Caller) -> Route:
        """The route of a model name or alias.

        Raises UnknownModel with the nearest names the caller may use, NotAllowed for a model its key does not open.
        """
        route = self._by_name.get(name)
        if route is None:
            raise UnknownModel(self._unknown(name, caller), param="model")
        if not caller.may_use(route.names):
            raise NotAllowed(f"the key {caller.name!r} may not use the model {name!r}", param="model")
        return route

    def visible(self, caller: Caller) -> list[Route]:
        """The routes the caller may use, in the configuration's order."""
        return [route for route in self._routes if caller.may_use(route.names)]

    def _unknown(self, name: str, caller: Caller) -> str:
        known = [known for route in self.visible(caller) for known in route.names]
        folded = {candidate.lower(): candidate for candidate in known}
        near = difflib.get_close_matches(name.lower(), folded, n=SUGGESTIONS, cutoff=0.5)
        shown = name if len(name) <= 100 else f"{name[:100]}…"
        if near:
            return f"there is no model {shown!r}; did you mean {' or '.join(repr(folded[match]) for match in near)}?"
        return f"there is no model {shown!r}; GET /v1/models lists those there are"
