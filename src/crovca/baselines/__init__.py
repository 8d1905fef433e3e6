"""Other methods on the same embeddings, one file each; ``registry`` lists them."""
