"""Conversion of a Hugging Face model to a quantized GGUF file, stored with its manifest."""
