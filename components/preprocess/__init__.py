"""Questions, SQL queries and databases in; a dataset that every prompt of which fits the model out."""
