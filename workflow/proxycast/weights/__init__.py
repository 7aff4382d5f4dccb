"""Weights and tokenizers: model folders, conversion, and downloads from the hub."""
