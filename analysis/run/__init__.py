"""How a study ran."""
