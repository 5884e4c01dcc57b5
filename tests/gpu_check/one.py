"""Runs checks and writes what came of each: python -m tests.gpu_check.one CHECK ... --work W --device D [--tiny]."""

import argparse
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from tests.gpu_check.place import Place

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


def device() -> dict[str, Any]:
    """The first GPU, and the number of GPUs."""
    import torch

    facts: dict[str, Any] = {"gpus": torch.cuda.device_count(), "torch": torch.__version__}
    if facts["gpus"]:
        properties = torch.cuda.get_device_properties(0)
        facts["name"], facts["memory_gib"] = properties.name, round(properties.total_memory / 2**30, 1)
        facts["capability"], facts["cuda"] = f"{properties.major}.{properties.minor}", torch.version.cuda
    return facts


def main() -> None:
    """Run the checks that the command line names, one after the other."""
    if sys.argv[1] == "device":
        print(json.dumps(device()))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    place = Place(options.device, options.tiny, options.work)
    for name in options.names:
        (options.work / f"{name}.json").write_text(json.dumps(result_of(name, place)), encoding="utf-8")


def result_of(name: str, place: Place) -> dict[str, Any]:
    """Run a check: its status, the reason if it did not pass, its seconds, and what it found."""
    from tests.gpu_check import checks

    started = time.monotonic()
    found: dict[str, Any] = {}
    try:
        # The function adds to `found` what it measures, so that a failure shows what there was.
        getattr(checks, name)(place, found)
        status, reason = PASSED, ""
    except checks.DoesNotFit as error:
        status, reason = SKIPPED, str(error)
    except Exception as error:  # noqa: BLE001  # whatever fails is the result
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        status, reason = FAILED, f"{type(error).__name__}: {lines[0][:300]}"
    return {"status": status, "reason": reason, "seconds": round(time.monotonic() - started, 1), "found": found}


if __name__ == "__main__":
    main()
