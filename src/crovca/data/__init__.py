"""Embedding files, stores and labels."""
