"""Weights of others to ours and back; a run's weights without the run."""
