"""Optimal transport between generated images and samples, without any notion of privacy."""
