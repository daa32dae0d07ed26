"""Decisions, each for itself: no socket, no process, no waiting."""
