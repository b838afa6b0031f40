"""Models: the patch codec, the transformer block and the world-action model."""
