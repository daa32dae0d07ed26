"""What people read: made from the files of a run, and from nothing else."""
