"""The domain that every step speaks: schema, example, prompt, safe execution, verdict, query type."""
