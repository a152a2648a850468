"""What is measured of a model, one file a measurement, and the bench that they run on. No Ray here."""
