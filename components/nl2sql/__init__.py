"""The NL2SQL domain shared by all steps: schemas, examples, verdicts, and in subpackages the rest."""
