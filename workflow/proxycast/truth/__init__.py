"""Downstream results: measured here, by lm-eval or by others, as one table of targets."""
