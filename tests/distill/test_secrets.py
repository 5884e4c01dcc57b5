"""The teacher's API key is only in the environment."""

import os
import subprocess
import sys
from pathlib import Path

from tests.distill.running_teacher import running_teacher

KEY = "sk-very-secret-0123456789"
ASK = """
import os, sys
from pathlib import Path
from chatmetrics.components.errors import ServiceError
from tests.distill.running_teacher import RunningTeacher, requests

folder, endpoint, broken, key = sys.argv[1], sys.argv[2], sys.argv[3], os.environ["TEACHER_API_KEY"]
for stream in (True, False):
    for name, address, more in (("right", endpoint, ""), ("wrong", endpoint, "-or-not"), ("broken", broken, "")):
        os.environ["TEACHER_API_KEY"] = key + more + "\\n"  # like a secret that was created with echo
        try:
            asked = RunningTeacher(Path(folder) / f"{name}-{stream}", address, Path())
            print(asked.ask(requests(12), stream=stream, attempts=12 if name == "right" else 1))
        except ServiceError as error:
            print(repr(error))
"""


def test_the_key_is_in_no_file_and_no_output(tmp_path: Path) -> None:
    # Errors and answers repeat the key, as those of some providers do.
    teachers = [["--key", KEY, "--error-500", "0.4", "--repeat-key"], ["--error-500", "1"]]
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    with (
        running_teacher(tmp_path / "one", *teachers[0]) as one,
        running_teacher(tmp_path / "other", *teachers[1]) as other,
    ):
        command = [sys.executable, "-c", ASK, str(tmp_path), one.endpoint, other.endpoint]
        done = subprocess.run(
            command,
            env={**os.environ, "TEACHER_API_KEY": KEY, "OPENAI_LOG": "debug"},
            capture_output=True,
            text=True,
            check=True,
        )
    written = {path: path.read_text("utf-8") for path in tmp_path.rglob("*") if path.is_file()}
    output = done.stdout + done.stderr
    for repeated in (
        "SamplingResult(",
        "Incorrect API key provided: [hidden]",
        "Something broke while serving [hidden]",
    ):
        assert output.count(repeated) >= 2
    assert "[hidden]" in written[tmp_path / "right-True" / "ledger" / "requests.jsonl"]
    for text in (output, *written.values()):
        assert KEY not in text
