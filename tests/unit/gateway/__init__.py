"""Decisions of the gateway, each for itself."""
