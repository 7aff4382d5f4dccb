"""Tables of what a choice costs, for corpora and for models."""
