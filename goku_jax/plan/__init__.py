"""Plans: a configuration compiled for a pod that is not there."""
