"""Benchmarks: what esa-ray costs, each time beside plain code doing the same in the same run."""
