"""What each odd file gave: a table for the documentation.

    python tests/bench/odd_files.py [FOLDER]

FOLDER holds the odd files and their notes.jsonl, by default those beside the repository. The broken files that the tests make (tests/video)
are made here too. Each file is indexed (decoded, resized, at most 8 frames) by both decoders, in a process of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parents[1] / "video")]
from makevideo import with_cover, write_sound, write_video  # noqa: E402

from vctool.config import PreprocessConfig  # noqa: E402
from vctool.video.clip import VideoInput  # noqa: E402
from vctool.video.workers import DecodePool, DecodeResult  # noqa: E402

ODD = HERE.parents[3] / "shared" / "data" / "realclips" / "odd"
SQUARES = PreprocessConfig(size=224, resize="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1))


def made(folder: Path) -> list[tuple[Path, str]]:
    """Broken and unusual files, made here."""
    whole = write_video(folder / "whole.mp4", 60, container_options={"movflags": "faststart"})
    late = write_video(folder / "late.mp4", 60)
    data = whole.read_bytes()
    files = {
        "empty.mp4": (b"", "no bytes"),
        "text.mp4": (b"this is no video\n" * 40, "a text file by a video's name"),
        "cut.mp4": (data[: len(data) * 4 // 5], "its last fifth cut off, index first"),
        "no-index.mp4": (late.read_bytes()[: late.stat().st_size // 2], "cut before the index at its end"),
        "hole.mp4": (data[: len(data) // 2] + bytes(600) + data[len(data) // 2 + 600 :], "600 bytes of zeros in the middle"),
    }
    rows = []
    for name, (content, note) in files.items():
        (folder / name).write_bytes(content)
        rows.append((folder / name, note))
    rows.append((write_sound(folder / "sound.mp4"), "sound without a picture"))
    rows.append((write_sound(folder / "song.mp4", cover=True), "sound with cover art"))
    rows.append((with_cover(whole, folder / "covered.mp4"), "a video with cover art before it"))
    rows.append((write_video(folder / "one.mp4", 1), "a single frame"))
    rows.append((write_video(folder / "turned.mp4", 30, clockwise=90), "stored sideways, with a rotation tag"))
    uneven = [i * i for i in range(30)]
    rows.append((write_video(folder / "uneven.mkv", 30, pts=uneven), "frames at uneven times"))
    rows.append((folder / "missing.mp4", "not there"))
    return rows


def told(result: DecodeResult) -> str:
    if result.error is not None or result.info is None or result.frames_FHWC is None or result.times_F is None:
        return f"skipped: {result.error}"
    info, taken = result.info, len(result.times_F)
    shape = f"{info.codec} {info.width}x{info.height}" + (f", turned {info.rotation}°" if info.rotation else "")
    length = f"{info.frame_count} frame{'s' * (info.frame_count != 1)}, {info.duration:.2f} s"
    damage = f", {result.damaged} damaged" if result.damaged else ""
    return f"{shape}, {length}; {taken} taken at {result.times_F[0]:.2f}–{result.times_F[-1]:.2f} s{damage}"


def outcome(path: Path, decoder: str) -> str:
    with DecodePool(1, count=8, transform_config=SQUARES, decoder=decoder) as pool:
        return told(next(iter(pool.run([VideoInput(path.name, path)]))))


def main() -> None:
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else ODD
    notes = [json.loads(line) for line in (given / "notes.jsonl").read_text(encoding="utf-8").splitlines()]
    print("| file | what it is | PyAV | decord |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        rows = [(given / note["video"], note["note"]) for note in notes] + made(Path(folder))
        for path, note in rows:
            pyav, decord = outcome(path, "pyav"), outcome(path, "decord")
            print(f"| `{path.name}` | {note} | {pyav} | {'the same' if decord == pyav else decord} |")


if __name__ == "__main__":
    main()
