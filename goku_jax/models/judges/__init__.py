"""Networks that judge what others generate; never trained on generated data."""
