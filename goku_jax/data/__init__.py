"""Sources, packing and batches: numpy and Grain, never JAX."""
