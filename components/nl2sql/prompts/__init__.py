"""Prompts: their template, what is shown in them, and what fits into a model."""
