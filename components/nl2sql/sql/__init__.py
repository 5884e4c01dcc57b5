"""SQL text: statements, parsed queries, query types, and comparisons, without a database."""
