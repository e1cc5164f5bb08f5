"""Audit: measure on public data how much the code of a run leaks."""
