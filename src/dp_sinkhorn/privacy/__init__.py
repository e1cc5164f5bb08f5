"""The curator, who holds the records, and the guarantee: clipping, noise, subsampling, ledger, accounting."""
