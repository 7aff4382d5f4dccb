"""Runs models over expert solutions and writes the statistics of each token."""
