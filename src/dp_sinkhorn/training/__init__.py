"""A run: its loop, checkpoints, folder and progress."""
