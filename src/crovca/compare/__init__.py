"""Methods on one's own embeddings."""
