"""Private and synthetic images: what they are and where they come from."""
