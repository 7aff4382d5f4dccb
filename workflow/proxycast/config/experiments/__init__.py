"""Options of the three experiments."""
