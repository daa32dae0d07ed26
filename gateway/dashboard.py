"""`/` in a browser: one page that shows the backends. It holds no state of the gateway, so anybody may have it.

What it shows it asks of `/admin`, which decides who may see. Its policy allows the page's own script and style by their
digests, and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources

from gateway.client import Headers


def wants_page(accept: bytes | None) -> bool:
    """Whether the client is a browser: it names HTML among what it takes."""
    return accept is not None and b"text/html" in accept


@cache
def dashboard() -> tuple[Headers, bytes]:
    """The page and the headers it is sent with."""
    page = resources.files(__package__).joinpath("dashboard.html").read_bytes()
    script, style = (_digests(page, tag) for tag in (b"script", b"style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", policy.encode("ascii")),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
        (b"vary", b"accept"),
    ]
    return headers, page


def _digests(page: bytes, tag: bytes) -> str:
    """The elements of *tag*, as a content security policy names them."""
    contents = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in contents)
