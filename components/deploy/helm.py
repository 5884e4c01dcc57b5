"""The helm program: its two major versions, what it says in JSON, and running it while something else looks on."""

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chatmetrics.components.deploy.kubernetes_client import RIGHTS
from chatmetrics.components.errors import InputError, ServiceError, UserError

PROGRAM = "CHATMETRICS_HELM"
MAJORS = (3, 4)
VERSION = re.compile(r"v(\d+)\.\d+\.\d+\S*")
CONTENT = "chatmetrics/content"  # a label that Helm keeps with a revision, and takes along when it rolls back to it
HISTORY = 20  # revisions that are kept; a failed deployment takes two
SECONDS_BETWEEN_LOOKS = 2.0
# What helm puts before the reason.
PREFIX = re.compile(
    r"^(Error: )?((UPGRADE|INSTALLATION) FAILED: )?"
    r"(release \S+ failed, and has been (rolled back|uninstalled) due to \S+ being set: )?"
)
# How it says that a value is wrong: by the chart's schema, or by a template's own check.
WRONG_VALUES = re.compile(
    r"values don't meet the specifications of the schema|execution error at \(\S+\): [^\n]*$", re.M
)


@dataclass(frozen=True)
class Revision:
    """One entry of a release's history; `status` is Helm's word, `chart` is name and version."""

    number: int
    status: str
    chart: str
    description: str

    @property
    def was_good(self) -> bool:
        """Whether it serves, or did until a later one took over."""
        return self.status in ("deployed", "superseded")


class HelmError(Exception):
    """Helm ended without success; the text is its reason in one line."""


class Helm:
    """The helm program for one namespace.

    Args:
        namespace: of the releases.
        kubeconfig: path; empty leaves it to the environment.

    Raises:
        ServiceError: there is no helm, or one whose options we do not know.
    """

    def __init__(self, namespace: str, kubeconfig: str = "") -> None:
        self._program = find_helm()
        self.version = _version(self._program)
        major = VERSION.match(self.version)
        if major is None or int(major[1]) not in MAJORS:
            raise ServiceError(f"{self._program} says it is {self.version!r}: Helm 3 and 4 are known; set {PROGRAM}")
        self._undo = undo_option(int(major[1]))
        # Helm 4 applies on the server's side, where an autoscaler's word on `replicas` would be a conflict.
        self._force = ["--force-conflicts"] if int(major[1]) >= 4 else []
        self._namespace = namespace
        self._options = ["--namespace", namespace, *(["--kubeconfig", kubeconfig] if kubeconfig else [])]

    def history(self, release: str) -> list[Revision]:
        """The revisions of a release, the oldest first; empty where there is no such release.

        Raises:
            ServiceError: the cluster does not answer, or refused.
        """
        try:
            entries = json.loads(self._answer("history", release, "--output", "json"))
        except HelmError as error:
            if "not found" in str(error):
                return []
            raise ServiceError(str(error)) from error
        keys = ("revision", "status", "chart", "description")
        return sorted((Revision(*(entry[key] for key in keys)) for entry in entries), key=lambda entry: entry.number)

    def values(self, release: str, revision: int) -> dict[str, Any]:
        """The values that a revision was given.

        Raises:
            ServiceError: as `history`.
        """
        return self._json("get", "values", release, "--revision", str(revision))

    def content(self, release: str, revision: int) -> str:
        """The content hash that a revision was given; empty where it has none.

        Raises:
            ServiceError: as `history`.
        """
        found = self._json("get", "metadata", release, "--revision", str(revision))
        return str((found.get("labels") or {}).get(CONTENT, ""))

    def hooks(self, release: str) -> list[dict[str, Any]]:
        """The hooks of the newest revision, each with `name`, `kind`, `events` and `last_run`.

        Raises:
            ServiceError: as `history`.
        """
        return list(self._json("status", release).get("hooks") or ())

    def upgrade(
        self,
        release: str,
        chart: Path,
        values: dict[str, Any],
        content: str,
        seconds: float,
        look: Callable[[], UserError | None],
    ) -> UserError | None:
        """Install or upgrade a release, and wait until it is ready; without success Helm brings the old one back.

        Args:
            release: its name.
            chart: folder of the chart.
            values: all that are not the chart's defaults.
            content: kept with the revision, see `content`.
            seconds: until Helm gives up.
            look: called every two seconds meanwhile; an error that it returns ends the deployment early.

        Returns:
            What `look` ended it for.

        Raises:
            HelmError: Helm's own reason, where `look` had none.
            InputError: a value is not what the chart wants.
        """
        with tempfile.TemporaryDirectory(prefix="values-") as folder:
            file = Path(folder) / "values.yaml"
            file.touch(mode=0o600)
            file.write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
            options = [
                "--install",
                "--reset-values",
                "--wait",
                self._undo,
                *self._force,
                f"--timeout={seconds:.0f}s",
                f"--history-max={HISTORY}",
                f"--labels={CONTENT}={content}",
                f"--values={file}",
            ]
            return self._watched(["upgrade", release, str(chart), *options], look)

    def rollback(
        self, release: str, revision: int, seconds: float, look: Callable[[], UserError | None]
    ) -> UserError | None:
        """Go back to a revision and wait until it is ready; arguments, result and errors are as of `upgrade`."""
        options = ["--wait", *self._force, f"--timeout={seconds:.0f}s", f"--history-max={HISTORY}"]
        return self._watched(["rollback", release, str(revision), *options], look)

    def uninstall(self, release: str) -> None:
        """Remove a release that has never served.

        Raises:
            ServiceError: as `history`.
        """
        try:
            self._answer("uninstall", release, "--wait", "--timeout=120s")
        except HelmError as error:
            raise ServiceError(str(error)) from error

    def _json(self, *words: str) -> dict[str, Any]:
        try:
            return dict(json.loads(self._answer(*words, "--output", "json")) or {})  # no values are null
        except HelmError as error:
            raise ServiceError(str(error)) from error

    def _answer(self, *words: str) -> str:
        done = subprocess.run(
            [self._program, *words, *self._options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
        if done.returncode:
            raise self._error(done.stderr, done.returncode)
        return done.stdout

    def _watched(self, words: Sequence[str], look: Callable[[], UserError | None]) -> UserError | None:
        verdict = None
        with tempfile.TemporaryFile() as output:
            # A session of its own: Ctrl-C in a terminal is for us, and helm is interrupted by us.
            process = subprocess.Popen(
                [self._program, *words, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while not _has_ended(process, SECONDS_BETWEEN_LOOKS):
                    if verdict := look():
                        break
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)  # helm then brings the old version back
                    process.wait()
            output.seek(0)
            said = output.read().decode(errors="replace")
        if verdict or not process.returncode:
            return verdict
        if WRONG_VALUES.search(said):
            listed = [line.strip().removeprefix("- ") for line in said.splitlines() if line.strip().startswith("- ")]
            raise InputError(f"deploy.values: {'; '.join(listed) or reason_in(said)}")
        raise self._error(said, process.returncode)

    def _error(self, said: str, exit_status: int) -> HelmError:
        reason = reason_in(said) or f"exit status {exit_status}"
        hint = ""
        if "namespaces" in reason and "not found" in reason:
            hint = f"; kubectl create namespace {self._namespace}"
        elif "forbidden" in reason.lower() or "unauthorized" in reason.lower():
            hint = f"; {RIGHTS}"
        elif "cluster unreachable" in reason:
            hint = "; check KUBECONFIG"
        return HelmError(f"helm: {reason}{hint}")


def find_helm() -> str:
    """The program that CHATMETRICS_HELM names, else `helm` on the PATH.

    Raises:
        ServiceError: there is none.
    """
    wanted = os.environ.get(PROGRAM, "helm")
    found = shutil.which(wanted)
    if found is None:
        raise ServiceError(f"{wanted} is not on the PATH: install Helm 3 or 4 (https://helm.sh), or set {PROGRAM}")
    return found


def undo_option(major: int) -> str:
    """The option by which this major version brings the old release back: Helm 4 gave it another name."""
    return "--atomic" if major == 3 else "--rollback-on-failure"


def reason_in(said: str) -> str:
    """The reason in what helm has printed, in one line, without what helm puts before it."""
    _, marker, reason = said.rpartition("\nError: ") if "\nError: " in said else said.rpartition("Error: ")
    lines = [line.strip() for line in (reason if marker else said).splitlines() if line.strip()]
    return PREFIX.sub("", "; ".join(lines))


def _version(program: str) -> str:
    done = subprocess.run([program, "version", "--short"], capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise ServiceError(f"`{program} version` fails: {reason_in(done.stderr)}; set {PROGRAM}")
    return done.stdout.strip()


def _has_ended(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
