"""The steps of the pipeline and what they share."""

import logging

# At its import bitsandbytes warns of an optional package for 4-bit inference on some CPUs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
