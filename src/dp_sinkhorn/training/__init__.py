"""A private step, and a whole run of them."""
