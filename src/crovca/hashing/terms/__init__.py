"""The objective's terms, a file each; ``hashing.objective.TERMS`` lists them."""
