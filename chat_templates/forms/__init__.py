"""The forms in which engines take a template: one file each, what it is and what the engine makes of it."""
