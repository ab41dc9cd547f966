"""Trainings that differ in one thing, and what is made of them."""
