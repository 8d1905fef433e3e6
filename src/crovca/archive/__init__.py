"""From a folder of things to an index and back."""
