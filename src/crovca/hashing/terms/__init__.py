"""The objective's terms, a file each, with a function of the file's name; ``hashing.objective.TERMS`` lists them."""
