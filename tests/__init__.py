"""The tests, by the question each kind answers."""
