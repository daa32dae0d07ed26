"""Where prompts come from: files as people have them, or made up to a length."""
