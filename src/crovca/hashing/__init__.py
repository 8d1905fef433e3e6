"""The method of the paper: network, objective, teacher bits, pairs, training."""
