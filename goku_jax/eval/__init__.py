"""Evaluation: what a run generates, measured."""
