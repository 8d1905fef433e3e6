"""Images and texts as numbered items."""
