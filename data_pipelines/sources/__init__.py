"""Readers of dataset formats, each an ``EpisodeSource``: episodes by index, columns and frames at random access."""
