"""llama.cpp's converter, without quantization."""

import subprocess
import sys
from pathlib import Path

from chatmetrics.components.base_model.llama_cpp import converter_path


def converted(model: Path, target: Path, type: str = "f32") -> Path:
    """Convert a Hugging Face folder to a GGUF file of one type, and return the file's path."""
    wrapper = ["-m", "chatmetrics.components.convert.llama_cpp", str(converter_path())]
    options = ["--outtype", type, "--outfile", str(target)]
    subprocess.run([sys.executable, *wrapper, str(model), *options], check=True, capture_output=True)
    return target
