"""Hugging Face model to a quantized GGUF file, published with its manifest."""
