"""Sections of a data selection: the order of the corpora, and how well proxies predict the truth."""
