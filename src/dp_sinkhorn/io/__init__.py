"""Safe reading and atomic writing of files; errors that a user can act on."""
