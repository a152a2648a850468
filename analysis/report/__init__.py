"""The report: page, terminal, verdicts, and the sections and figures that they show."""
