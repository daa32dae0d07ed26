"""One module for each hub, which imports that hub's library: for the downloading process, and nobody else."""
