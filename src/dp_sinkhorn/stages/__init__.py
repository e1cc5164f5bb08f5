"""The stages of the method, one file each: what a stage asks of the records and what it learns from the answers."""
