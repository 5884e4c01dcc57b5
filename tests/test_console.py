import pytest

from chatmetrics.components import console


def test_items_done_earlier_do_not_count_for_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 10.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    console.Progress("training", 1000, "steps", begun=900).update(920, "loss 0.5")
    line = capsys.readouterr().err
    assert line == "training: 920/1000 steps, 2.0/s, 40 s left, loss 0.5\n"
    assert console.is_progress(line) and not console.is_notice(line)


def test_notices_are_recognized_and_other_lines_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    console.note("a pool has no node")
    console.warning("the disk is nearly full")
    console.error(ValueError("no such file"))
    console.info("convert: writing model.gguf")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "note: a pool has no node",
        "warning: the disk is nearly full",
        "error: no such file",
        "convert: writing model.gguf",
    ]
    assert [console.is_notice(line) for line in lines] == [True, True, True, False]
    assert not any(map(console.is_progress, lines))
