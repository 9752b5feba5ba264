"""Where the time of a run goes: lines that can be read are summed, damaged ones fail no run."""

import time
from pathlib import Path

import pytest

from pipeline_lib import timings


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two jobs of two stages."""
    path = tmp_path / "timings.jsonl"
    timings.append(path, "images", "0" * 64, 30.0)
    timings.append(path, "metrics", "1" * 64, 10.0)
    return path


def test_jobs_since_the_start_are_summed(path: Path):
    """Not those of an earlier run; of none there is nothing to say."""
    text = timings.summary(path, since=time.time() - 100)
    assert text.startswith("Time of the jobs: 40 s")
    assert "  images          1 jobs     30.0 s" in text
    assert timings.summary(path, since=time.time() + 100) == ""
    assert timings.summary(path.with_name("none"), since=0) == ""
    assert timings.summary(path.parent, since=0) == ""


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\x00",
        b"{",
        b"",
        b"[]",
        b"null",
        b"{}",
        b'{"stage": "images", "key": "k", "ended": "then", "wall_time_s": 1, "phases": {}}',
        b'{"stage": "images", "key": "k", "ended": 1e12, "wall_time_s": NaN, "phases": {}}',
        b'{"stage": "images", "key": "k", "ended": 1e12, "wall_time_s": 1, "phases": ["sampling"]}',
    ],
)
def test_a_damaged_line_costs_only_itself(path: Path, line: bytes):
    expected = timings.summary(path, since=0).splitlines()[1:]
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, line, second, b""]))
    assert timings.summary(path, since=0).splitlines()[1:] == expected


def test_any_flipped_bit_leaves_the_other_line(path: Path):
    """Wherever it is: none of them fails a run."""
    content = path.read_bytes()
    for position in range(content.index(b"\n")):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(bytes(flipped))
        assert "  metrics " in timings.summary(path, since=0)
