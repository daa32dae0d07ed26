"""Sizes in bytes, as people read them."""

from __future__ import annotations


def size_text(size: int) -> str:
    """*size* in bytes as people read it: ``3.1 GB``, ``12 MB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if size < 10 * factor else f"{size / factor:.0f} {unit}"
    return f"{size} B"
