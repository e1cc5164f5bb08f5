"""Randomness, clipping, mechanism, accounting: what makes the guarantee true."""
