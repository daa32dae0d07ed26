"""The demonstration of a wrong template."""
