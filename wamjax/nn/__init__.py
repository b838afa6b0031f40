"""Layers: attention behind one front door, rotary, norms, modulation, feed-forward, embeddings."""
