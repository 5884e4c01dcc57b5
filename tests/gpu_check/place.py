"""Where a check runs."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """The device, cuda or cpu; whether models are tiny; and a folder that all checks share."""

    device: str
    tiny: bool
    folder: Path

    @property
    def has_gpu(self) -> bool:
        return self.device == "cuda"
