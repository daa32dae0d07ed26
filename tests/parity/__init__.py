"""The parity table: real engines, published templates, every case of the battery; what is served, what is refused.

`python -m tests.parity` (as `make parity` calls it) writes docs/parity.md.
"""
