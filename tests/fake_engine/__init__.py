"""A process that speaks like an engine and fails on request: for faults only, never as proof that an engine works."""
