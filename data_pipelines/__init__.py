"""Data pipelines: everything between files on disk (or a simulator) and a training batch."""
