"""Templates that are not Jinja files: read, translated, or refused by name."""
