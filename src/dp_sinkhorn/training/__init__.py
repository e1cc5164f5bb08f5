"""A whole run: its loop, checkpoint and folder."""
