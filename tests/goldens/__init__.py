"""What code of ours writes, kept as text to be reviewed."""
