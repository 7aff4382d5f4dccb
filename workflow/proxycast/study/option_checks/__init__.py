"""Checks of single options against the whole study, before the first job."""
