"""The NL2SQL domain shared by all steps: schema, example, prompt, safe execution, verdict, query type."""
