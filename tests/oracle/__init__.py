"""Is our rendering the reference's? Everything here runs the installed transformers beside it."""
