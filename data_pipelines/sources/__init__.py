"""Readers of dataset formats, each a ``Source``: episodes by index, columns and frames at random access."""
