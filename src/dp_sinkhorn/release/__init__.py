"""The release: card, weights, model card, signature, and their check."""
