"""Databases of questions and the safe execution of queries on them."""
