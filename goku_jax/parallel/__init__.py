"""Meshes, sharding rules and placement: the room that names mesh axes."""
