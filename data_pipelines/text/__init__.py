"""Text: cleaning of prompts, tokenisation from local files, a cache of their embeddings."""
