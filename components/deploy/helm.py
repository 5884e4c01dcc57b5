"""The helm program: its two major versions, its JSON output, and operations that can be watched and interrupted."""

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
DRIVER, CONFIG_MAPS = "HELM_DRIVER", "configmap"  # Helm's variable for where it stores releases
MAJORS = (3, 4)
VERSION = re.compile(r"v(\d+)\.\d+\.\d+\S*")
CONTENT = "chatmetrics/content"  # label that Helm stores with a revision, and copies when it rolls back to it
HISTORY = 20  # revisions that are kept; a failed deployment takes two
SECONDS_BETWEEN_LOOKS = 2.0
# Helm prints these before the reason.
PREFIX = re.compile(
    r"^(Error: )?((UPGRADE|INSTALLATION) FAILED: )?"
    r"(release \S+ failed, and has been (rolled back|uninstalled) due to \S+ being set: )?"
)
# Helm's error if a value is wrong: reported by the chart's schema, or by a check in a template.
WRONG_VALUES = re.compile(
    r"values don't meet the specifications of the schema|execution error at \(\S+\): [^\n]*$", re.M
)


@dataclass(frozen=True)
class Revision:
    """One entry of a release's history.

    Attributes:
        number: Helm's number of the revision.
        status: Helm's status, for example `deployed`.
        chart: name and version of the chart.
        description: Helm's description.
    """

    number: int
    status: str
    chart: str
    description: str

    @property
    def was_good(self) -> bool:
        """Whether this revision serves, or served until a later one replaced it."""
        return self.status in ("deployed", "superseded")


class HelmError(Exception):
    """Helm failed; the text is its reason in one line."""


class Helm:
    """The helm program for one namespace.

    Releases are stored in ConfigMaps unless HELM_DRIVER says otherwise: in Secrets, Helm's default, the account would
    need the right to list all Secrets of the namespace.

    Args:
        namespace: namespace of the releases.
        kubeconfig: path of a kubeconfig; empty uses the environment.

    Attributes:
        version: version that the program reports.

    Raises:
        ServiceError: Helm is not available, or its major version is not supported.
    """

    def __init__(self, namespace: str, kubeconfig: str = "") -> None:
        self._program = find_helm()
        self.version = _version(self._program)
        major = VERSION.match(self.version)
        if major is None or int(major[1]) not in MAJORS:
            raise ServiceError(
                f"{self._program} reports version {self.version!r}: Helm 3 and 4 are supported; set {PROGRAM}"
            )
        self._rollback_option = rollback_option(int(major[1]))
        # Helm 4 uses server-side apply, where `replicas` set by an autoscaler would be a conflict.
        self._force = ["--force-conflicts"] if int(major[1]) >= 4 else []
        self._environment = {**os.environ, DRIVER: os.environ.get(DRIVER) or CONFIG_MAPS}
        self._namespace = namespace
        self._options = ["--namespace", namespace, *(["--kubeconfig", kubeconfig] if kubeconfig else [])]

    def history(self, release: str) -> list[Revision]:
        """Return the revisions of a release, the oldest first; empty if the release does not exist.

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
        """Return the values of a revision, without the chart's defaults.

        Raises:
            ServiceError: as `history`.
        """
        return self._json("get", "values", release, "--revision", str(revision))

    def content(self, release: str, revision: int) -> str:
        """Return the content hash of a revision; empty if it has none.

        Raises:
            ServiceError: as `history`.
        """
        found = self._json("get", "metadata", release, "--revision", str(revision))
        return str((found.get("labels") or {}).get(CONTENT, ""))

    def hooks(self, release: str) -> list[dict[str, Any]]:
        """Return the hooks of the newest revision, each with `name`, `kind`, `events` and `last_run`.

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
        """Install or upgrade a release and wait until it is ready. If that fails, Helm restores the old revision.

        Args:
            release: name of the release.
            chart: folder of the chart.
            values: the values that differ from the chart's defaults.
            content: content hash, stored with the revision; see `content`.
            seconds: time after which Helm gives up.
            look: called every two seconds during the operation; an error that it returns ends the operation early.

        Returns:
            The error that `look` returned; None if the operation succeeded.

        Raises:
            HelmError: Helm failed for its own reason.
            InputError: the chart does not accept a value.
        """
        with tempfile.TemporaryDirectory(prefix="values-") as folder:
            file = Path(folder) / "values.yaml"
            file.touch(mode=0o600)
            file.write_text(yaml.safe_dump(values, allow_unicode=True), "utf-8")
            options = [
                "--install",
                "--reset-values",
                "--wait",
                self._rollback_option,
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
        """Roll back to a revision and wait until it is ready; arguments, result and errors are those of `upgrade`."""
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
            env=self._environment,
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
            # In its own session, Helm does not get a terminal's Ctrl-C; this process gets it and interrupts Helm.
            process = subprocess.Popen(
                [self._program, *words, *self._options],
                env=self._environment,
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
                    process.send_signal(signal.SIGINT)  # Helm then restores the old revision
                    process.wait()
            output.seek(0)
            printed = output.read().decode(errors="replace")
        if verdict or not process.returncode:
            return verdict
        if WRONG_VALUES.search(printed):
            lines = [line.strip() for line in printed.splitlines()]
            listed = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
            raise InputError(f"deploy.values: {'; '.join(listed) or reason_in(printed)}")
        raise self._error(printed, process.returncode)

    def _error(self, printed: str, exit_status: int) -> HelmError:
        reason = reason_in(printed) or f"exit status {exit_status}"
        hint = ""
        if "namespaces" in reason and "not found" in reason:
            hint = f"; kubectl create namespace {self._namespace}"
        elif "forbidden" in reason.lower() or "unauthorized" in reason.lower():
            hint = f"; {RIGHTS}"
        elif "cluster unreachable" in reason:
            hint = "; check KUBECONFIG"
        return HelmError(f"helm: {reason}{hint}")


def find_helm() -> str:
    """Return the path of the program named by CHATMETRICS_HELM, else of `helm` on the PATH.

    Raises:
        ServiceError: the program is not available.
    """
    wanted = os.environ.get(PROGRAM, "helm")
    found = shutil.which(wanted)
    if found is None:
        raise ServiceError(f"{wanted} is not on the PATH: install Helm 3 or 4 (https://helm.sh), or set {PROGRAM}")
    return found


def rollback_option(major: int) -> str:
    """Return the option that makes a failed upgrade roll back; Helm 4 renamed it."""
    return "--atomic" if major == 3 else "--rollback-on-failure"


def reason_in(printed: str) -> str:
    """Extract the reason from Helm's output, in one line and without the words that Helm puts before it."""
    _, marker, reason = printed.rpartition("\nError: " if "\nError: " in printed else "Error: ")
    lines = [line.strip() for line in (reason if marker else printed).splitlines() if line.strip()]
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
