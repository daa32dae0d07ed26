"""Every engine with every fault, one table: `python -m tests.fault.matrix`."""
