"""Finds the joins of a database that no foreign key declares."""
