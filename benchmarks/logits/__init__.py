"""Logit caches and the distillation loss beside what others do: size, time and memory."""
