"""Clips to latents in ArrayRecord shards."""
