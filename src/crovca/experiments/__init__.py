"""Experiments as recipes."""
