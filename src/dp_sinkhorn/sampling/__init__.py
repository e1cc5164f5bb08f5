"""Sampling images from a release, and writing them."""
