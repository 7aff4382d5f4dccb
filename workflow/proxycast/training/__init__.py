"""Models that a study trains itself: the miniature suite, and ladders on corpora of text."""
