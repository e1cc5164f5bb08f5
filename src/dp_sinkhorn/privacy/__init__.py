"""The curator who holds the records, and what makes the guarantee: clipping, noise, subsampling, ledger, accounting."""
