"""Files read safely and written atomically; errors that a user can act on."""
