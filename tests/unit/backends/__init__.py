"""The decisions of the backends package, without engines."""
