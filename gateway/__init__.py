"""HTTP in, HTTP out: configuration, admission, routing, relay, metrics, administration. Never a PID."""

__version__ = "0.1.0"
