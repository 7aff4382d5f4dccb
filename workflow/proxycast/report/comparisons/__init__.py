"""Figures of what choices cost and of what else could be asked: laws, noise, numbers of solutions, mixtures."""
