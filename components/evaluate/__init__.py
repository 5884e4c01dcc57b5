"""Served GGUF models in; execution accuracy of student and base, and a report, out."""
