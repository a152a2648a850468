"""Statistics that know nothing of studies."""
