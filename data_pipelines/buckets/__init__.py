"""Windows of several sizes in one run: which window goes where, and batches that are each of one size."""
