"""Sections of forecasts: curves with what became of them, errors and coverage."""
