"""Evaluation of served GGUF models, endpoints and prediction files: execution accuracy and a report."""
