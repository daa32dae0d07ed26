"""How long properties are looked at: briefly, or as `make fault` does."""

from hypothesis import settings

settings.register_profile("thorough", max_examples=10_000)
