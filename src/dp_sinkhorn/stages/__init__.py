"""One file an idea of the method: what it asks of the records and what it makes of the answers."""
