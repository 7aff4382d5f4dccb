"""Expert solutions: read, checked, rendered from rows and tokenised."""
