"""Merges a LoRA adapter into its base model."""

import logging

# Where it is installed, PEFT imports bitsandbytes, which warns about an optional kernel on CPUs with AVX512-BF16.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
