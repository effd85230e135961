"""The pool: whatever happens to a decode process costs one clip, is told, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from makevideo import numbers_in, write_video

from vctool.config import PreprocessConfig
from vctool.errors import UsageProblem, VctoolError
from vctool.video.clip import VideoInput
from vctool.video.decode import decode_frames
from vctool.video.workers import DecodePool, DecodeResult

BAD = "badreader:BadReader"
SIXTY = [2, 7, 12, 17, 22, 27, 32, 37, 42, 47, 52, 57]


@pytest.fixture
def clips(sixty: Path, tmp_path: Path) -> Clips:
    return Clips(sixty, tmp_path)


class Clips:
    """Links to one video under names that make `BadReader` fail."""

    def __init__(self, video: Path, folder: Path) -> None:
        self.video, self.folder = video, folder

    def __call__(self, *names: str) -> list[VideoInput]:
        made = []
        for number, name in enumerate(names):
            path = self.folder / f"{name}-{number}.mp4"
            if name != "missing" and not path.exists():
                path.symlink_to(self.video)
            made.append(VideoInput(path.name, path))
        return made


def outcome(results: list[DecodeResult]) -> list[str | list[int]]:
    """For each clip its error or the numbers of its frames."""
    return [r.error if r.frames_FHWC is None else numbers_in(list(r.frames_FHWC)) for r in results]  # type: ignore[misc]


def pids(pool: DecodePool) -> list[int]:
    return [w.pid for w in pool._workers if w.pid is not None]


def gone(pid: int) -> bool:
    """Whether a process has ended and been waited for: a zombie would still have a number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_the_order_of_the_inputs(workers: int, clips: Clips) -> None:
    given = clips("slow", "good", "missing", "good", "good")
    with DecodePool(workers, count=12, decoder=BAD) as pool:
        results = list(pool.run(given))
    assert [r.input for r in results] == given
    assert outcome(results) == [SIXTY, SIXTY, "no such file", SIXTY, SIXTY]
    good = results[1]
    assert good.error is None
    assert good.times_F == pytest.approx(np.array(SIXTY) / 30)
    assert good.frames_FHWC is not None
    assert (good.frames_FHWC.dtype, good.frames_FHWC.shape) == (np.uint8, (12, 64, 96, 3))
    assert good.info is not None
    assert (good.info.width, good.info.duration, good.info.codec, good.info.frame_count) == (96, pytest.approx(2.0), "h264", 60)
    assert good.info.frame_times_F is None
    assert 0 < good.seconds < 10


def test_unordered_results_do_not_wait_for_a_slow_one(clips: Clips) -> None:
    given = clips("slow", "good", "good", "good")
    with DecodePool(2, count=12, decoder=BAD) as pool:
        list(pool.run(clips("good", "good")))  # both processes are up
        results = list(pool.run(given, ordered=False))
    assert results[0].input.id != "slow-0.mp4"
    assert sorted(r.input.id for r in results) == sorted(v.id for v in given)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("exit", "decoder crashed (exit code 3)"),
        ("kill", "decoder crashed (signal 9, SIGKILL)"),
        ("segv", "decoder crashed (signal 11, SIGSEGV)"),
        ("raise", "cannot be decoded (RuntimeError: two)"),
    ],
)
def test_a_decoder_that_dies_costs_exactly_its_clip(kind: str, reason: str, clips: Clips) -> None:
    with DecodePool(1, count=12, decoder=BAD) as pool:
        assert outcome(list(pool.run(clips("good", kind, "good", kind, "good")))) == [SIXTY, reason, SIXTY, reason, SIXTY]


def test_a_decoder_that_hangs_is_killed_after_the_time_limit(clips: Clips) -> None:
    with DecodePool(2, count=12, decoder=BAD, timeout_s=2.0) as pool:
        list(pool.run(clips("good", "good")))
        began = time.perf_counter()
        assert outcome(list(pool.run(clips("hang", "good", "good", "good")))) == ["took longer than 2 s", SIXTY, SIXTY, SIXTY]
        assert time.perf_counter() - began < 6


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no SIGSTOP on this system")
def test_a_process_that_is_stopped_from_outside_is_a_hang_too(clips: Clips) -> None:
    with DecodePool(1, count=12, decoder=BAD, timeout_s=2.0) as pool:
        list(pool.run(clips("good")))
        os.kill(pids(pool)[0], signal.SIGSTOP)
        assert outcome(list(pool.run(clips("good", "good")))) == ["took longer than 2 s", SIXTY]


def test_a_process_that_is_killed_while_idle_is_replaced(clips: Clips) -> None:
    with DecodePool(1, count=12, decoder=BAD) as pool:
        list(pool.run(clips("good")))
        os.kill(pids(pool)[0], signal.SIGKILL)
        time.sleep(0.1)
        assert outcome(list(pool.run(clips("good", "good")))) == [SIXTY, SIXTY]


def test_a_library_that_prints_disturbs_nothing(clips: Clips, capfd: pytest.CaptureFixture[str]) -> None:
    with DecodePool(1, count=12, decoder=BAD) as pool:
        assert outcome(list(pool.run(clips("talk", "good")))) == [SIXTY, SIXTY]
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_processes_stay_between_runs_and_are_gone_after_close(clips: Clips) -> None:
    with DecodePool(2, count=12) as pool:
        list(pool.run(clips("good", "good", "good", "good")))
        first = pids(pool)
        list(pool.run(clips("good", "good", "good", "good")))
        assert pids(pool) == first
        assert first
    assert all(gone(pid) for pid in first)
    assert pids(pool) == []


def test_leaving_the_loop_early_stops_the_work_at_once(clips: Clips) -> None:
    with DecodePool(2, count=12, decoder=BAD) as pool:
        list(pool.run(clips("good", "good")))
        began = time.perf_counter()
        for result in pool.run(clips("good", "hang", "hang", "good", "good")):
            assert result.input.id == "good-0.mp4"
            break
        assert time.perf_counter() - began < 5
        assert threading.active_count() == 1 or not any(t.name == "vctool-decode" for t in threading.enumerate())
        assert outcome(list(pool.run(clips("good", "good")))) == [SIXTY, SIXTY]
        left = pids(pool)
    assert all(gone(pid) for pid in left)


def test_an_exception_in_the_loop_or_in_the_inputs_reaches_the_caller(clips: Clips) -> None:
    def inputs() -> Iterator[VideoInput]:
        yield from clips("good")
        raise LookupError("from the inputs")

    with DecodePool(1, count=12) as pool:
        with pytest.raises(LookupError, match="from the inputs"):
            list(pool.run(inputs()))
        with pytest.raises(ZeroDivisionError):
            for _ in pool.run(clips("good", "good")):
                raise ZeroDivisionError
        assert outcome(list(pool.run(clips("good")))) == [SIXTY]


def test_inputs_are_taken_only_as_results_are(clips: Clips) -> None:
    given = clips(*["good"] * 20)
    taken = 0

    def inputs() -> Iterator[VideoInput]:
        nonlocal taken
        for clip in given:
            taken += 1
            yield clip

    with DecodePool(2, count=12) as pool:
        for number, _ in enumerate(pool.run(inputs()), start=1):
            assert taken <= number + 4
    assert taken == 20


def test_work_goes_on_while_the_taker_is_busy(clips: Clips) -> None:
    with DecodePool(1, count=12, decoder=BAD) as pool:
        results = pool.run(clips("good", "slow", "good"))
        next(results)
        time.sleep(1.0)
        began = time.perf_counter()
        next(results)
        assert time.perf_counter() - began < 0.25
        list(results)


def test_frames_pass_through_the_model_s_preprocessing(sixty: Path) -> None:
    from vctool.preprocessing.pixels import Preprocessor

    config = PreprocessConfig(size=32)
    with DecodePool(1, count=5, transform_config=config) as pool:
        (result,) = pool.run([VideoInput("a", sixty)])
    direct = decode_frames(sixty, 5, transform=Preprocessor(config))
    assert result.frames_FHWC is not None
    assert result.frames_FHWC.shape == (5, 32, 32, 3)
    assert np.array_equal(result.frames_FHWC, np.stack(direct.frames))


def test_pieces_and_damage_travel_through_the_pipe(sixty: Path, tmp_path: Path) -> None:
    (tmp_path / "half.mp4").write_bytes(sixty.read_bytes()[: sixty.stat().st_size // 2])
    with DecodePool(1, count=3) as pool:
        piece, half = pool.run([VideoInput("a#0.5-1", sixty, 0.5, 1.0), VideoInput("b", tmp_path / "half.mp4")])
    assert outcome([piece]) == [[17, 22, 27]]
    assert piece.damaged == 0
    assert half.damaged > 10


def test_a_picture_size_that_changes_is_an_error_only_where_nothing_resizes(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / "1.ts", 30), write_video(tmp_path / "2.ts", 30, size=(144, 96))]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(p.read_bytes() for p in parts))
    with DecodePool(0, count=4) as pool:
        (raw,) = pool.run([VideoInput("a", joined)])
    with DecodePool(0, count=4, transform_config=PreprocessConfig(size=32)) as pool:
        (resized,) = pool.run([VideoInput("a", joined)])
    assert raw.error == "the picture size changes on the way (96x64, 144x96) and nothing resizes it"
    assert resized.frames_FHWC is not None
    assert resized.frames_FHWC.shape == (4, 32, 32, 3)


def test_a_name_that_is_not_utf8_reaches_the_worker(sixty: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    try:
        path.write_bytes(sixty.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with DecodePool(1, count=12) as pool:
        assert outcome(list(pool.run([VideoInput("a", path)]))) == [SIXTY]


def test_a_worker_that_cannot_start_is_one_error_not_one_for_each_clip(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCTOOL_TEST_PARENT", str(os.getpid()))
    with (
        DecodePool(2, count=12, decoder="badreader:Unimportable") as pool,
        pytest.raises(VctoolError, match=r"a decode process does not start: decoder crashed \(exit code 9\)"),
    ):
        list(pool.run(clips("good", "good", "good")))


@pytest.mark.parametrize("given", [{"workers": -1}, {"timeout_s": 0.0}, {"decoder": "none"}])
def test_an_impossible_pool_is_a_usage_problem(given: dict[str, object]) -> None:
    with pytest.raises(UsageProblem):
        DecodePool(**{"workers": 1, "count": 12, **given})  # type: ignore[arg-type]


def test_two_runs_at_once_are_refused(clips: Clips) -> None:
    with DecodePool(1, count=12) as pool:
        first = pool.run(clips("good", "good"))
        next(first)
        with pytest.raises(UsageProblem, match="already decoding"):
            next(pool.run(clips("good")))
        assert len(list(first)) == 1


def test_workers_ignore_ctrl_c(clips: Clips) -> None:
    with DecodePool(1, count=12, decoder=BAD) as pool:
        list(pool.run(clips("good")))
        os.kill(pids(pool)[0], signal.SIGINT)
        assert outcome(list(pool.run(clips("good")))) == [SIXTY]


SCRIPT = """
    import sys
    sys.path[:0] = {paths!r}
    from pathlib import Path
    from vctool.video.clip import VideoInput
    from vctool.video.workers import DecodePool
    # No `if __name__ == "__main__"`: a script of three lines must work too.
    pool = DecodePool(2, count=2, decoder="badreader:BadReader")
    clips = [VideoInput(name, Path(name)) for name in {names!r}]
    try:
        for result in pool.run(clips):
            print(result.input.id, *[w.pid for w in pool._workers], flush=True)
    except KeyboardInterrupt:
        pool.close()
        print("interrupted", flush=True)
        sys.exit(130)
"""


def start_script(clips: list[VideoInput]) -> subprocess.Popen[str]:
    here = Path(__file__).parent
    code = textwrap.dedent(SCRIPT).format(paths=[str(here), str(here.parents[1])], names=[str(c.path) for c in clips])
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.skipif(os.name == "nt", reason="signals to a process group")
def test_ctrl_c_ends_the_parent_cleanly_and_takes_the_workers_along(clips: Clips) -> None:
    script = start_script(clips("good", "hang", "hang"))
    assert script.stdout is not None
    workers = [int(p) for p in script.stdout.readline().split()[1:] if p != "None"]
    assert workers
    os.killpg(script.pid, signal.SIGINT)
    out, err = script.communicate(timeout=60)
    assert (script.returncode, out, err) == (130, "interrupted\n", "")
    assert all(gone(pid) for pid in workers)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_workers_end_when_their_parent_is_killed(clips: Clips) -> None:
    script = start_script(clips("good", "hang", "hang"))
    assert script.stdout is not None
    workers = [int(p) for p in script.stdout.readline().split()[1:] if p != "None"]
    script.kill()
    script.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while not all(gone(pid) or _is_zombie(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(gone(pid) or _is_zombie(pid) for pid in workers)


def _is_zombie(pid: int) -> bool:
    """In a container nothing may wait for orphans: ended is ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return False


def test_closing_the_pool_ends_a_run_whose_results_are_still_held(clips: Clips) -> None:
    with DecodePool(2, count=12, decoder=BAD) as pool:
        results = pool.run(clips("good", "hang", "hang", "good"))
        next(results)
        left = pids(pool)
    assert all(gone(pid) for pid in left)
    assert list(results) == []
    assert pids(pool) == []
