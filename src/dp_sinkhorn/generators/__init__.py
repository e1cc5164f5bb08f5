"""Generators: latents and labels in, images out."""
