import subprocess
import sys
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.train.checkpoints.checksums import claim, locked, newest_complete, remove_newer, seal


def checkpoint(folder: Path, step: int, sealed: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "optimizer.pt").write_bytes(bytes(1000) + bytes([step % 256]))
    (path / "trainer_state.json").write_text("{}")
    if sealed:
        seal(path)
    return path


def test_the_newest_checkpoint_is_the_one_with_the_highest_step(tmp_path: Path) -> None:
    for step in (100, 1000, 200):
        checkpoint(tmp_path, step)
    assert newest_complete(tmp_path) == tmp_path / "checkpoint-1000"


def test_a_folder_may_contain_no_checkpoint(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None
    assert newest_complete(tmp_path / "missing") is None


@pytest.mark.parametrize("damage", ["not sealed", "truncated", "one bit", "file missing", "seal cut off"])
def test_an_incomplete_or_damaged_checkpoint_is_skipped_with_a_warning(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = checkpoint(tmp_path, 4)
    bad = checkpoint(tmp_path, 8, sealed=damage != "not sealed")
    optimizer = bad / "optimizer.pt"
    if damage == "truncated":
        optimizer.write_bytes(optimizer.read_bytes()[:-1])
    elif damage == "one bit":
        optimizer.write_bytes(b"\1" + optimizer.read_bytes()[1:])
    elif damage == "file missing":
        (bad / "trainer_state.json").unlink()
    elif damage == "seal cut off":
        (bad / "sealed.json").write_bytes((bad / "sealed.json").read_bytes()[:-3])
    assert newest_complete(tmp_path) == good
    assert f"{bad} is incomplete or damaged" in capsys.readouterr().err


def test_checkpoints_newer_than_the_resumed_one_are_removed(tmp_path: Path) -> None:
    for step in (4, 8, 12, 16):
        checkpoint(tmp_path, step, sealed=step < 12)
    remove_newer(tmp_path, newest_complete(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-4", "checkpoint-8"}
    remove_newer(tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    claim(tmp_path, {"learning_rate": "1e-4", "dataset": "abc"})
    claim(tmp_path, {"learning_rate": "1e-4", "dataset": "abc"})
    with pytest.raises(InputError, match="another dataset, learning_rate"):
        claim(tmp_path, {"learning_rate": "2e-4", "dataset": "abd"})


def test_two_runs_cannot_share_a_folder_at_the_same_time(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from chatmetrics.components.train.checkpoints.checksums import locked\n"
        "with locked(Path(sys.argv[1])): print('inside')"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with locked(tmp_path):
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "another training run uses this folder" in second.stderr and "inside" not in second.stdout
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "inside\n"
