"""The gateway's own log: to its file and the terminal, and what happens when the file cannot be written."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.rotating_file import RotatingFile
from gateway.log_files import open_logs

_log = logging.getLogger("unigate.gateway")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The root logger as it was, its new handlers closed."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    for handler in before:
        root.removeHandler(handler)
    yield
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    for handler in before:
        root.addHandler(handler)
    root.setLevel(level)


def test_a_line_goes_to_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line is in the file and on the terminal; a quiet gateway keeps its terminal for others."""
    open_logs(tmp_path / "logs", rotate_bytes=1000, keep=1)
    _log.info("a line")
    assert (tmp_path / "logs" / "gateway.log").read_text().endswith("INFO unigate.gateway: a line\n")
    assert capsys.readouterr().err.endswith("INFO unigate.gateway: a line\n")


def test_a_full_disk_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the file cannot be written the terminal is told once, in a line; then the file says what it lacks."""
    open_logs(tmp_path, rotate_bytes=1000, keep=1, is_quiet=True)

    def full(file: RotatingFile, line: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RotatingFile, "append", full)
        for number in range(3):
            _log.info("lost %d", number)
    _log.info("kept")
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert f"cannot write {tmp_path / 'gateway.log'}: No space left on device" in told[0]
    missing, kept = (tmp_path / "gateway.log").read_text().splitlines()
    assert "3 lines are missing here" in missing
    assert kept.endswith("kept")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """It is known before the gateway starts."""
    (tmp_path / "logs").touch()
    with pytest.raises(FileExistsError):
        open_logs(tmp_path / "logs", rotate_bytes=1000, keep=1)
