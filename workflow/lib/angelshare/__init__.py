"""Distil language models, measure every joule, never generate a teacher artifact twice."""

__version__ = "0.1.0"
