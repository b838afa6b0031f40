"""Robots as data: one TOML file each says where cameras lie, what states and actions mean, and how fast they come."""
