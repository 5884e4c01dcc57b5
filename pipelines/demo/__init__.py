"""The demo's base model: a small Qwen2 that has read SQL about other businesses, never about hotels."""
