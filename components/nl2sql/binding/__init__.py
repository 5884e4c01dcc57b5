"""Names bound to a schema: a query with a wrong name of a table, column or alias gets the smallest repair."""
