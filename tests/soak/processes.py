"""What processes use, read from Linux's /proc."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

MIB = 1024


@dataclass(frozen=True)
class Usage:
    """What one pod uses.

    Attributes:
        proxy_mib: Proportional set size of the proxy (memory it shares is divided by the number of sharers), in MiB.
        workers: Number of the processes that run queries.
        workers_mib: Their proportional set size, in MiB.
        descriptors: Open file descriptors of the proxy.
        threads: Threads of the proxy.
        queue: Occupied places of its queue.
        engines: Number of Ollama's processes.
        engine_descriptors: Their open file descriptors.
    """

    proxy_mib: float
    workers: int
    workers_mib: float
    descriptors: int
    threads: int
    queue: int
    engines: int
    engine_descriptors: int

    def row(self) -> list[float]:
        """The values in the order of `COLUMNS`."""
        return list(asdict(self).values())


COLUMNS = [field.name for field in fields(Usage)]


def family(pid: int) -> list[int]:
    """A process and all processes below it, the process first; empty if it does not run."""
    if not pid or not (tasks := Path(f"/proc/{pid}/task")).exists():
        return []
    try:
        children = [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]
    except OSError:  # a thread has ended meanwhile
        return family(pid)
    return [pid, *(found for child in children for found in family(child))]


def is_running(pid: int) -> bool:
    """Whether a process has not ended. A stopped one is running; one that waits for its parent (a zombie) is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def usage(proxy: int, engine: int, queue: int) -> Usage:
    """Measure a pod from the ids of its proxy and its Ollama server.

    Raises:
        OSError: A process has ended meanwhile.
    """
    workers, engines = family(proxy)[1:], family(engine)
    return Usage(
        proxy_mib=round(_memory_mib(proxy), 1),
        workers=len(workers),
        workers_mib=round(sum(map(_memory_mib, workers)), 1),
        descriptors=_descriptors(proxy),
        threads=len(list(Path(f"/proc/{proxy}/task").iterdir())),
        queue=queue,
        engines=len(engines),
        engine_descriptors=sum(map(_descriptors, engines)),
    )


def _memory_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == "Pss":
            return int(rest.split()[0]) / MIB
    return 0.0


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
