"""Where results stand: locations, tables, the store, and the lease of whoever computes."""
