"""Schema linking: which tables and columns a question is about, and which of them a prompt shows."""
