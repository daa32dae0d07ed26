"""The catalog of templates."""
