"""Counts, tables, files and diagnoses of runs: what a user sees."""
