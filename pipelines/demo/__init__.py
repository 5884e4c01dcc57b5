"""The demo's base model: a small Qwen2 trained on SQL about other businesses, never about hotels."""
