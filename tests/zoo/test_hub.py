"""Downloads: whole or not at all, checked, resumed, and one line when they fail."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hubserver import COMMIT, WEIGHTS, Hub

from vctool.errors import InputError, ModelError, VerificationError
from vctool.zoo.hub import NoNetworkError, fetch_file
from vctool.zoo.table import WEIGHT_FILES

pytest.importorskip("huggingface_hub")
SUM = hashlib.sha256(WEIGHTS).hexdigest()


def blobs(folder: Path) -> dict[str, int]:
    """Name and size of everything in the cache's store of contents."""
    return {p.name: p.stat().st_size for p in folder.rglob("blobs/*")}


def test_the_first_name_that_is_there_is_fetched_and_its_sum_is_told(hub: Hub, tmp_path: Path) -> None:
    said: list[str] = []
    file = fetch_file("owner/towers", WEIGHT_FILES, say=said.append)
    assert file.path.read_bytes() == WEIGHTS
    assert (file.name, file.revision, file.sha256, file.bytes) == ("open_clip_pytorch_model.bin", COMMIT, SUM, len(WEIGHTS))
    assert said == ["downloading of 1.0 MB: owner/towers/open_clip_pytorch_model.bin"]
    assert blobs(tmp_path) == {SUM: len(WEIGHTS)}


def test_what_is_in_the_cache_is_not_downloaded_again_and_other_programs_find_it(hub: Hub) -> None:
    from huggingface_hub import hf_hub_download

    fetch_file("owner/towers", WEIGHT_FILES, say=print)
    fetch_file("owner/towers", WEIGHT_FILES, say=print)
    assert Path(hf_hub_download("owner/towers", "open_clip_pytorch_model.bin")).read_bytes() == WEIGHTS
    assert len(hub.fetched()) == 1


def test_a_small_file_is_checked_by_the_sum_that_git_knows(hub: Hub) -> None:
    assert fetch_file("owner/towers", ["tokenizer.json"], say=print).path.read_bytes() == b'{"version": "1.0"}'
    hub.repositories["owner/towers"]["other.json"] = b"{}"
    hub.small = ("other.json",)
    hub.altered = True
    with pytest.raises(VerificationError, match=r"other\.json is not what was published"):
        fetch_file("owner/towers", ["other.json"], say=print)


def test_half_a_download_is_gone_on_with_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.stop_after = 300_000
    with pytest.raises(InputError, match=r"stopped at 0\.3 MB of 1\.0 MB .*503.*it goes on where it stopped"):
        fetch_file("owner/towers", WEIGHT_FILES, say=print)
    ((name, size),) = blobs(tmp_path).items()
    assert name.endswith("-part") and size == 300_000
    hub.down = False
    said: list[str] = []
    assert fetch_file("owner/towers", WEIGHT_FILES, say=said.append).sha256 == SUM
    assert said == ["going on at 0.3 MB of 1.0 MB: owner/towers/open_clip_pytorch_model.bin"]
    assert hub.fetched()[-1][1] == "bytes=300000-"
    assert list(blobs(tmp_path)) == [SUM]


def test_a_connection_that_breaks_once_is_mended_in_the_same_run(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    def up_again(_: float) -> None:
        hub.down = False

    monkeypatch.setattr(file_download.time, "sleep", up_again)
    hub.stop_after = 500_000
    assert fetch_file("owner/towers", WEIGHT_FILES, say=print).sha256 == SUM
    assert [wanted for _, wanted in hub.fetched()] == [None, "bytes=500000-"]


def test_half_a_download_of_something_else_is_found_out(hub: Hub, tmp_path: Path) -> None:
    hub.stop_after = 300_000
    with pytest.raises(InputError):
        fetch_file("owner/towers", WEIGHT_FILES, say=print)
    hub.down = False
    (part,) = tmp_path.rglob("*-part")
    part.write_bytes(b"x" * 300_000)
    with pytest.raises(VerificationError, match="is not what was published"):
        fetch_file("owner/towers", WEIGHT_FILES, say=print)
    assert not blobs(tmp_path)


def test_bytes_that_are_not_what_was_announced_are_thrown_away(hub: Hub, tmp_path: Path) -> None:
    hub.altered = True
    with pytest.raises(VerificationError, match=rf"should be {SUM[:12]}… \(nothing of it was kept") as caught:
        fetch_file("owner/towers", WEIGHT_FILES, say=print)
    assert caught.value.exit_code == 3 and not blobs(tmp_path)


def test_a_sum_that_the_user_gives_outranks_the_hubs(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"should be 000000000000"):
        fetch_file("owner/towers", WEIGHT_FILES, sha256="0" * 64, say=print)
    assert not blobs(tmp_path)
    assert fetch_file("owner/towers", WEIGHT_FILES, sha256=SUM.upper(), say=print).sha256 == SUM


def test_a_damaged_copy_in_the_cache_is_downloaded_again(hub: Hub, tmp_path: Path) -> None:
    path = fetch_file("owner/towers", WEIGHT_FILES, say=print).path.resolve()
    path.write_bytes(WEIGHTS[:-1] + b"?")
    said: list[str] = []
    assert fetch_file("owner/towers", WEIGHT_FILES, say=said.append).path.read_bytes() == WEIGHTS
    assert "damaged" in said[0]


def test_without_a_network_the_cache_serves_and_is_checked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    path = fetch_file("owner/towers", WEIGHT_FILES, say=print).path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    file = fetch_file("owner/towers", WEIGHT_FILES, say=print)
    assert (file.sha256, file.revision) == (SUM, COMMIT) and len(hub.asked) == asked
    path.resolve().write_bytes(b"?")
    with pytest.raises(VerificationError, match="in the cache is damaged"):
        fetch_file("owner/towers", WEIGHT_FILES, say=print)
    with pytest.raises(NoNetworkError, match="HF_HUB_OFFLINE is set, and owner/none is not in the cache"):
        fetch_file("owner/none", WEIGHT_FILES, say=print)


def test_a_hub_that_is_down_or_not_there_is_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.down = True
    with pytest.raises(NoNetworkError, match="answers 503"):
        fetch_file("owner/towers", WEIGHT_FILES, say=print)
    assert len(hub.asked) == 1  # not once for every name that the file may have
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(NoNetworkError, match=r"127\.0\.0\.1:9 cannot be reached \(.*[Cc]onnection refused"):
        fetch_file("owner/towers", WEIGHT_FILES, say=print)


def test_a_repository_or_a_file_that_is_not_there_is_named(hub: Hub) -> None:
    with pytest.raises(ModelError, match="owner/none: the hub has no such repository"):
        fetch_file("owner/none", WEIGHT_FILES, say=print)
    with pytest.raises(ModelError, match=r"owner/towers on the hub has none of a, b"):
        fetch_file("owner/towers", ["a", "b"], say=print)


def test_a_hub_that_names_no_sum_is_not_believed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "etag", lambda *_: "W-5f1")
    with pytest.raises(VerificationError, match="--sha256 HEX"):
        fetch_file("owner/towers", WEIGHT_FILES, say=print)
    assert fetch_file("owner/towers", WEIGHT_FILES, sha256=SUM, say=print).path.read_bytes() == WEIGHTS


def test_a_disk_without_room_is_said_before_anything_is_downloaded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from vctool.zoo import hub as module

    monkeypatch.setattr(module, "_SPARE", 1 << 60)
    with pytest.raises(InputError, match=r"needs 1\.0 MB on the disk of .*HF_HOME"):
        fetch_file("owner/towers", WEIGHT_FILES, say=print)
    assert hub.fetched() == []


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_disk_that_fills_up_is_one_line_and_nothing_is_lost(hub: Hub) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        with pytest.raises(InputError, match=r"is full: open_clip_pytorch_model\.bin stopped at 0\.\d MB of 1\.0 MB \(make room"):
            fetch_file("owner/towers", WEIGHT_FILES, say=print)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert errno.EFBIG  # what the limit gives; a full disk gives ENOSPC, and both are treated alike
    assert fetch_file("owner/towers", WEIGHT_FILES, say=print).sha256 == SUM
    assert (hub.fetched()[-1][1] or "").startswith("bytes=")


def test_the_environment_is_honoured(hub: Hub, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE in a process of its own, as a user sets them."""
    code = (
        "from vctool.zoo.hub import fetch_file, NoNetworkError\n"
        "for name in ('towers', 'none'):\n"
        "    try: print(fetch_file('owner/' + name, ['open_clip_pytorch_model.bin'], say=print).path)\n"
        "    except Exception as problem: print(problem)\n"
    )

    def run(**extra: str) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **extra}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=True).stdout

    first = run().splitlines()
    assert first[0].startswith("downloading of 1.0 MB") and str(tmp_path / "home" / "hub") in first[1] and "no such repository" in first[2]
    asked = len(hub.asked)
    assert run(HF_HUB_OFFLINE="1").splitlines() == [first[1], "HF_HUB_OFFLINE is set, and owner/none is not in the cache"]
    assert len(hub.asked) == asked
