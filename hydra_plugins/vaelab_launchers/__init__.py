"""`hydra/launcher=ray`, `submitit_local` and `submitit_slurm`: run the jobs of a sweep in processes elsewhere."""
