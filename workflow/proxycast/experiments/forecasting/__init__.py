"""Forecasting: where a training run ends. `protocol` is the experiment."""
