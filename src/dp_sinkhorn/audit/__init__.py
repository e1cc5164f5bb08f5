"""Measuring what a run leaks, on public data, with the code that a run executes."""
