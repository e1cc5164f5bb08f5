"""A linear classifier on fixed features: trained privately, released with the generator."""
