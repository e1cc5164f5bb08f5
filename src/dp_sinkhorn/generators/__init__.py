"""Generators: networks that map latents and labels to images."""
