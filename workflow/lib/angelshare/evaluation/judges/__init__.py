"""Benchmarks that a language model judges, and the judges."""
