"""Turns questions, SQL queries and databases into a dataset whose examples all fit the model."""
