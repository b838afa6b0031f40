"""Weights: reading and writing checkpoints of other libraries."""
