"""Answers of a model: the forms that it is trained on, and the SQL that is read from them."""
