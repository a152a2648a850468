"""The pages of docs/results, made of the stores and of benchmarks' figures."""
