"""The generative mathematics: takes any velocity_fn, knows no network."""
