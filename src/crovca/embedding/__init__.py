"""From items to embeddings: jobs that fill stores, and blocks for fine-tuning and queries."""
