"""A stand-in for ``ollama serve``: a real process with the API, the habits and the children of Ollama 0.33.0-rc2.

It is held to what the real server answered by tests/contract/test_fake_ollama.py.
"""
