"""The page at `/`: who gets it, what it may load, and that it asks only for what the gateway tells."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import fields
from importlib import resources

from backends.diagnosis import Diagnosis
from backends.lifecycle import State
from backends.status import BackendStatus
from tests.gateways import Gateway

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
PAGE = resources.files("gateway").joinpath("dashboard.html").read_text(encoding="utf-8")


def test_a_browser_gets_the_page_and_a_program_the_addresses(gateway: Gateway) -> None:
    """The same path is a page for whoever takes HTML, and JSON for everybody else."""
    page = gateway.ask("GET", "/", headers=BROWSER)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.text == PAGE
    assert gateway.ask("GET", "/").json()["api"] == "/v1"


def test_its_policy_allows_its_own_script_and_style_and_nothing_else(gateway: Gateway) -> None:
    """Each inline element is named by its digest; nothing comes from elsewhere, and no other page may frame it."""
    policy = gateway.ask("GET", "/", headers=BROWSER).headers["content-security-policy"]
    for tag, directive in (("script", "script-src"), ("style", "style-src")):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert re.search(r"(src|href)=[\"']?(https?:)?//", PAGE) is None


def test_it_reads_only_what_the_administration_tells() -> None:
    """Each field the page reads of a backend or a diagnosis is one that /admin/backends sends."""
    for name, told in (("backend", BackendStatus), ("diagnosis", Diagnosis)):
        read = set(re.findall(rf"\b{name}\.(\w+)", PAGE))
        assert read
        assert read <= {field.name for field in fields(told)}


def test_it_writes_no_markup_of_what_it_is_told() -> None:
    """Model names and log lines reach the page as text: nothing is ever parsed as HTML."""
    assert re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", PAGE) is None


def test_it_knows_the_words_for_states() -> None:
    """The states it gives a look of their own exist."""
    (looks,) = re.findall(r"const LOOKS = {(.*?)}", PAGE)
    assert set(re.findall(r"(\w+):", looks)) <= {state.value for state in State} | {"sleeping"}
