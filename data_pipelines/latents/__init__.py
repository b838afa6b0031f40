"""Cached latents: what frozen encoders made of a dataset's windows, in ArrayRecord files, written once and streamed."""
