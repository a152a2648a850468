"""A pretend GPU for tests: real numbers in main memory, and the rules of a machine with cards."""
