"""The kinds of model whose checkpoints can be read and written."""
