"""The load generator: when to send, sending, and what came back at which time."""
