"""Clients that alternate between two models of which one fits: a gateway, fake engines, and a witness in /proc.

``python -m tests.fault.alternation --seconds 180`` prints what happened, and fails when a rule was broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.gateways import Gateway, fake_model, processes_of, running_gateway

MODELS = ("a", "b")
MEMORY_GIB = 8
BUDGET_GIB = 10
ANSWER_LIMIT_S = 60.0
WITNESS_S = 0.03


@dataclass
class Account:
    """What was seen. *bound* is the most swaps that the residency allows."""

    seconds: float
    residency_s: float
    clients: int
    statuses: Counter[int] = field(default_factory=Counter)
    swaps: int = 0
    bound: int = 0
    longest_wait_s: float = 0.0
    looks: int = 0
    together: int = 0
    """Looks at which engines of both models were alive."""

    def check(self) -> None:
        """Raises AssertionError when a rule was broken."""
        assert set(self.statuses) == {200}, f"not every request was answered: {self}"
        assert self.together == 0, f"both engines were alive at once: {self}"
        assert 0 < self.swaps <= self.bound, f"more swaps than the residency allows, or none: {self}"


class Witness:
    """Looks at the processes of one gateway again and again, in a thread of its own."""

    def __init__(self, gateway: Gateway, account: Account) -> None:
        self._run = gateway.run
        self._account = account
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(WITNESS_S):
            alive = {marker.partition(":")[0] for marker in processes_of(self._run).values() if marker}
            self._account.looks += 1
            self._account.together += len(alive) > 1


class Client(threading.Thread):
    """Asks one model, then the other, until the time is up; every answer is waited for."""

    def __init__(self, gateway: Gateway, account: Account, first: int, until: float) -> None:
        super().__init__()
        self._gateway = gateway
        self._account = account
        self._next = first
        self._until = until
        self._lock = threading.Lock()

    def run(self) -> None:
        """Ask until the time is up."""
        with httpx.Client(base_url=self._gateway.url, timeout=ANSWER_LIMIT_S, trust_env=False) as http:
            while time.monotonic() < self._until:
                body = {
                    "model": MODELS[self._next % 2], "messages": [{"role": "user", "content": "Hi"}], "stream": True,
                }  # fmt: skip
                before = time.monotonic()
                answer = http.post("/v1/chat/completions", json=body)
                is_whole = answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text
                with self._lock:
                    self._account.statuses[answer.status_code if answer.status_code != 200 or is_whole else -1] += 1
                    self._account.longest_wait_s = max(self._account.longest_wait_s, time.monotonic() - before)
                self._next += 1


def alternate(folder: Path, *, seconds: float, residency_s: float, clients: int = 4) -> Account:
    """Let *clients* alternate for *seconds*; the models stay for *residency_s* at the least."""
    account = Account(seconds, residency_s, clients)
    flags = ("chunks=10", "chunk-interval=0.02")
    models = {name: fake_model(folder, *flags, load="on_demand", memory_gib=MEMORY_GIB) for name in MODELS}
    settings = {"memory_gib": BUDGET_GIB, "min_residency_s": residency_s}
    with running_gateway(folder, models, settings=settings) as gateway:
        began = time.monotonic()
        with Witness(gateway, account):
            askers = [Client(gateway, account, number, began + seconds) for number in range(clients)]
            for asker in askers:
                asker.start()
            for asker in askers:
                asker.join()
            took_s = time.monotonic() - began
        account.swaps = int(gateway.metric("unigate_swaps_total"))
    # Between two swaps lies one residency, and the last may have just begun.
    account.bound = int(took_s / residency_s) + 1
    return account


def main(arguments: Sequence[str]) -> int:
    """Alternate as *arguments* say, print the account, and return 0 when no rule was broken."""
    p = argparse.ArgumentParser(prog="alternation", description=__doc__)
    p.add_argument("--seconds", type=float, default=180.0)
    p.add_argument("--residency", type=float, default=5.0, metavar="S")
    p.add_argument("--clients", type=int, default=4)
    given = p.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        account = alternate(Path(folder), seconds=given.seconds, residency_s=given.residency, clients=given.clients)
    print(json.dumps({**vars(account), "statuses": dict(account.statuses)}))
    try:
        account.check()
    except AssertionError as broken:
        print(broken, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
