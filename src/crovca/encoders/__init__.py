"""Foundation models: load them, prepare their input, take their embeddings, convert what transformers cannot read."""
