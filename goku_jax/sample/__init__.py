"""Prompts to pixels: text, latents, frames, files."""
