"""Statistics of tables in hand, which the report of a study computes, too."""
