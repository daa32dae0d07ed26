"""A rotating file: whole lines, bounded sizes, full disks."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from backends.rotating_file import RotatingFile


def test_a_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    """Nothing is buffered: what was appended can be read though the file was never closed."""
    file = RotatingFile(tmp_path / "deep" / "f.log", rotate_bytes=1000, keep=1)
    file.append("one")
    assert (tmp_path / "deep" / "f.log").read_text() == "one\n"
    file.close()


@pytest.mark.parametrize(("keep", "names"), [(0, ["f"]), (1, ["f", "f.1"]), (3, ["f", "f.1", "f.2", "f.3"])])
def test_sizes_are_bounded(tmp_path: Path, keep: int, names: list[str]) -> None:
    """No file grows past rotate_bytes and no more than *keep* old ones stay, none included; the newest lines stay."""
    file = RotatingFile(tmp_path / "f", rotate_bytes=100, keep=keep)
    for number in range(200):
        file.append(f"line {number:04}")
    file.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    text = "".join((tmp_path / name).read_text() for name in reversed(names))
    lines = text.splitlines()
    assert lines == [f"line {number:04}" for number in range(200 - len(lines), 200)]
    assert all((tmp_path / name).stat().st_size <= 100 for name in names)


def test_a_line_longer_than_a_file(tmp_path: Path) -> None:
    """It has a file to itself, and nothing is cut."""
    file = RotatingFile(tmp_path / "f", rotate_bytes=10, keep=5)
    for line in ("a", "b" * 50, "c"):
        file.append(line)
    file.close()
    assert (tmp_path / "f.1").read_text() == "b" * 50 + "\n"
    assert (tmp_path / "f").read_text() == "c\n"


def test_a_file_is_continued(tmp_path: Path) -> None:
    """What an earlier process wrote counts towards the size."""
    (tmp_path / "f").write_text("x" * 95 + "\n")
    file = RotatingFile(tmp_path / "f", rotate_bytes=100, keep=1)
    file.append("more than fits")
    file.close()
    assert (tmp_path / "f").read_text() == "more than fits\n"


def test_a_line_that_fits_in_part_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes only the beginning of a line gets it back, and the line can be appended again as a whole."""
    file = RotatingFile(tmp_path / "f", rotate_bytes=1000, keep=1)
    file.append("before")

    class NearlyFull(io.FileIO):
        def write(self, content: object) -> int:
            return super().write(bytes(content)[:3])  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        file.close()
        patch.setattr("backends.rotating_file.io.FileIO", NearlyFull)
        with pytest.raises(OSError, match="No space left on device"):
            file.append("a line")
    file.close()
    file.append("a line")
    file.close()
    assert (tmp_path / "f").read_text() == "before\na line\n"


def test_a_device_is_not_rotated(tmp_path: Path) -> None:
    """A link to a device stays one, however much is written."""
    (tmp_path / "f").symlink_to(os.devnull)
    file = RotatingFile(tmp_path / "f", rotate_bytes=10, keep=1)
    for _ in range(10):
        file.append("a line")
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
