"""The answer to each question of a study, in sentences: from its tables, without an opinion of its own."""
