"""Searching codes: the exact scores and the oracle that every engine must equal."""
