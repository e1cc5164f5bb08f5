"""Optimal transport between generated images and samples; knows nothing of privacy."""
