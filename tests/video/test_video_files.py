"""From what a user types to a list of clips with ids."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vctool.errors import InputError
from vctool.video.files import VIDEO_SUFFIXES, VideoInput, find_videos


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """clips/{b.mp4,a.MOV,notes.txt,.hidden.mp4,.cache/x.mp4,deep/er/c.webm}; finding does not open files."""
    folder = tmp_path / "clips"
    for name in ("b.mp4", "a.MOV", "notes.txt", ".hidden.mp4", ".cache/x.mp4", "deep/er/c.webm"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def ids(*inputs: str | Path) -> list[str]:
    return [v.id for v in find_videos(inputs)]


def manifest(folder: Path, *rows: object) -> Path:
    path = folder / "list.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def failure(*inputs: str | Path) -> InputError:
    with pytest.raises(InputError) as caught:
        find_videos(inputs)
    return caught.value


def test_a_folder_gives_its_videos_at_any_depth_by_name_without_hidden_ones(tree: Path) -> None:
    assert ids(tree) == ["a.MOV", "b.mp4", "deep/er/c.webm"]
    assert [v.path for v in find_videos([tree])] == [tree / "a.MOV", tree / "b.mp4", tree / "deep" / "er" / "c.webm"]


def test_a_hidden_folder_that_is_named_is_searched(tree: Path) -> None:
    assert ids(tree / ".cache") == ["x.mp4"]


def test_a_named_file_is_taken_whatever_its_suffix(tree: Path) -> None:
    assert ids(tree / "notes.txt", tree / "b.mp4") == ["notes.txt", "b.mp4"]


def test_a_named_file_that_does_not_exist_stays_in_the_list(tree: Path) -> None:
    found = find_videos([tree / "gone.mp4", tree / "b.mp4"])
    assert [v.id for v in found] == ["gone.mp4", "b.mp4"]
    assert not found[0].path.exists()


def test_files_of_two_folders_are_named_from_the_folder_they_share(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.mp4").touch()
    assert ids(tree / "b.mp4", tmp_path / "more" / "b.mp4") == ["clips/b.mp4", "more/b.mp4"]
    assert ids(tree, tmp_path / "more") == ["clips/a.MOV", "clips/b.mp4", "clips/deep/er/c.webm", "more/b.mp4"]


def test_relative_and_absolute_spellings_give_the_same_ids(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert ids(".") == ids(tree) == ids("deep/..") == ids("../clips")
    assert ids("b.mp4") == ["b.mp4"]


def test_a_file_that_several_inputs_name_counts_once(tree: Path) -> None:
    assert ids(tree, tree / "b.mp4", tree / "deep" / ".." / "b.mp4") == ["a.MOV", "b.mp4", "deep/er/c.webm"]


def test_a_glob_that_the_shell_left_alone_is_expanded(tree: Path) -> None:
    assert ids(f"{tree}/*.mp4") == ["b.mp4"]
    assert ids(f"{tree}/**/*.webm") == ["c.webm"]
    assert ids(f"{tree}/**/*.[mw]*") == ["b.mp4", "deep/er/c.webm"]


def test_a_glob_gives_what_the_shell_would_have_given(tree: Path) -> None:
    assert ids(f"{tree}/*") == ids(*sorted(p for p in tree.iterdir() if not p.name.startswith(".")))


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tree: Path) -> None:
    (tree / "[1].mp4").touch()
    assert ids(f"{tree}/[1].mp4") == ["[1].mp4"]


def test_a_glob_that_matches_nothing_is_an_error(tree: Path) -> None:
    assert f"nothing matches '{tree}/*.avi'" in str(failure(f"{tree}/*.avi"))


def test_a_folder_without_videos_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    problem = failure(tmp_path)
    assert problem.message == f"no videos in {tmp_path}"
    assert problem.hint is not None
    assert all(suffix in problem.hint for suffix in VIDEO_SUFFIXES)


def test_no_input_and_an_empty_one_are_errors() -> None:
    assert "no videos given" in str(failure())
    assert "empty string" in str(failure(""))


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links")
def test_links_are_followed_and_a_loop_ends(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.mp4").touch()
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    (tree / "deep" / "loop").symlink_to(tree)
    (tree / "broken.mp4").symlink_to(tree / "nothing")
    assert ids(tree) == ["a.MOV", "b.mp4", "broken.mp4", "deep/er/c.webm", "link/z.mp4"]


def test_a_name_that_is_not_utf8_gets_an_id_that_is(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.mp4")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert ids(tmp_path) == ["caf\\xe9.mp4"]


def test_a_manifest_row_becomes_a_clip(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        {"path": "sub/a.mp4", "captions": ["one", "two"], "source": "somewhere", "score": 3},
        "",
        {"video": "b.mp4", "start": 1, "end": 2.5, "caption": "three"},
        {"clip": "c.mp4", "id": "my id", "start": None},
        {"clip": "c.mp4", "id": 17, "start": 10.25},
    )
    assert find_videos([path]) == [
        VideoInput("sub/a.mp4", tmp_path / "sub/a.mp4", None, None, ("one", "two"), {"source": "somewhere", "score": 3}),
        VideoInput("b.mp4#1-2.5", tmp_path / "b.mp4", 1.0, 2.5, ("three",), {}),
        VideoInput("my id", tmp_path / "c.mp4", None, None, (), {}),
        VideoInput("17", tmp_path / "c.mp4", 10.25, None, (), {}),
    ]


def test_the_pieces_of_one_video_have_ids_of_their_own(tmp_path: Path) -> None:
    rows = [{"path": "a.mp4"}, {"path": "a.mp4", "start": 10}, {"path": "a.mp4", "end": 20}, {"path": "a.mp4", "start": 0.1, "end": 1e3}]
    assert ids(manifest(tmp_path, *rows)) == ["a.mp4", "a.mp4#10-", "a.mp4#0-20", "a.mp4#0.1-1000"]


def test_the_ids_of_a_manifest_do_not_depend_on_the_other_inputs(tree: Path, tmp_path: Path) -> None:
    path = manifest(tmp_path, {"path": "./x/../m.mp4"}, {"path": "/abs/n.mp4"})
    assert ids(path) == ["m.mp4", "/abs/n.mp4"]
    assert ids(path, tree / "b.mp4")[:2] == ["m.mp4", "/abs/n.mp4"]


def test_a_caption_may_hold_any_character_that_ends_a_line_elsewhere(tmp_path: Path) -> None:
    text = "a\u2028b\x85c\x0bd"
    path = tmp_path / "list.jsonl"
    path.write_text(json.dumps({"path": "a.mp4", "caption": text}, ensure_ascii=False) + "\r\n", encoding="utf-8-sig")
    assert find_videos([path])[0].captions == (text,)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{not json", "is not JSON"),
        ("[1, 2]", "is not a JSON object"),
        ('"a.mp4"', "is not a JSON object"),
        ('{"id": "a"}', "names no file: none of the keys path, video, clip"),
        ('{"path": 3}', '"path" must be a file name, not 3'),
        ('{"path": ""}', '"path" must be a file name'),
        ('{"path": "a\\u0000b"}', '"path" must be a file name'),
        ('{"path": "a", "start": "1"}', '"start" must be seconds, 0 or more, not "1"'),
        ('{"path": "a", "start": -1}', '"start" must be seconds, 0 or more, not -1'),
        ('{"path": "a", "start": true}', '"start" must be seconds'),
        ('{"path": "a", "end": NaN}', '"end" must be seconds'),
        ('{"path": "a", "end": 1e999}', '"end" must be seconds'),
        ('{"path": "a", "end": 0}', "ends at 0 s, which is not after its start at 0 s"),
        ('{"path": "a", "start": 5, "end": 4.5}', "ends at 4.5 s, which is not after its start at 5 s"),
        ('{"path": "a", "id": ""}', '"id" must be a text'),
        ('{"path": "a", "id": [1]}', '"id" must be a text'),
        ('{"path": "a", "captions": [1]}', '"captions" must be a list of texts'),
        ('{"path": "a", "caption": {}}', '"caption" must be a list of texts'),
        ('{"path": "a", "id": "\\ud800"}', "holds half a character"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_bad_line_is_named_with_its_number(line: str, says: str, tmp_path: Path) -> None:
    path = manifest(tmp_path, {"path": "fine.mp4"}, "", line)
    problem = failure(path)
    assert problem.message.startswith(f"{path}: line 3 ")
    assert says in problem.message
    assert "\n" not in str(problem)


def test_two_rows_of_one_id_are_named_both(tmp_path: Path) -> None:
    path = manifest(tmp_path, {"path": "a.mp4"}, {"path": "b.mp4"}, {"path": "./a.mp4"})
    assert "line 1 and line 3 have the same id 'a.mp4'" in str(failure(path))


def test_two_inputs_of_one_id_are_named_both(tree: Path) -> None:
    problem = failure(tree / "b.mp4", manifest(tree.parent, {"path": "other.mp4", "id": "b.mp4"}))
    assert str(tree / "b.mp4") in str(problem)
    assert "other.mp4" in str(problem)


def test_an_empty_or_unreadable_manifest_is_an_error(tmp_path: Path) -> None:
    assert "no videos in" in str(failure(manifest(tmp_path)))
    assert "no such file" in str(failure(tmp_path / "none.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"path": "caf\xe9"}')
    assert "is not UTF-8 text" in str(failure(tmp_path / "latin.jsonl"))


def test_a_folder_that_cannot_be_read_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", forbidden)
    assert "cannot be read: Permission denied" in str(failure(tree))


def test_the_real_manifest_is_understood(realclips: Path) -> None:
    found = find_videos([realclips / "captions.jsonl"])
    assert len(found) > 30
    assert all(v.path.is_file() and v.captions for v in found)
