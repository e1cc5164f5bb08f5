"""The layouts in which people keep images, a file each; `sources.py` lists them in the order of looking."""
