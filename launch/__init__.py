"""Command line and composition root: the only place where data meets training."""
