"""What stops a benchmark before or while it runs."""


class BenchmarkError(Exception):
    """What was asked for cannot be done. The message says what is wrong, where, and what to do."""
