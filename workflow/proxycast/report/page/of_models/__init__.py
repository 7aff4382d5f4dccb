"""Sections of a model selection: the order of the models, the evidence behind it, what a pick costs."""
