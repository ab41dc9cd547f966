"""The training job: one loop, a pure jitted step, a loss for each model."""
