"""Sampling: chunk by chunk with a key-value cache derived from the layout."""
