"""A user's own text: which files in which mixture, their documents, and their tokens on disk for training."""
