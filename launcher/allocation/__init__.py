"""Inside a Slurm job: what runs on its nodes."""
