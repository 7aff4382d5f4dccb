"""Sections that every study has: its tokens, where its proxies lose, why to believe it."""
