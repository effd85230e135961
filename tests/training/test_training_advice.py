"""What a run is told about its clips, captions and result, each provoked for real."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from toy import QUIET, Splits, colour_pairs, load_toy, toy_config, toy_model, toy_recipe, write_clips

from vctool.config import ModelConfig, QueryConfig, write_json
from vctool.errors import InputError
from vctool.models.video_colbert import VideoColBERT
from vctool.training.batches import BatchPlan
from vctool.training.clips import read_clips
from vctool.training.display import Display
from vctool.training.recipe import Recipe
from vctool.training.run import start

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("toy")


class Heard(Display):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def line(self, words: str) -> str:
        return next((line for line in self.lines if words in line), "")


def heard(recipe: Recipe) -> Heard:
    display = Heard()
    start(recipe, display=display)
    return display


def rewritten(manifest: Path, change: dict[int, Any]) -> Path:
    """The manifest with the captions of some lines replaced."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, captions in change.items():
        rows[number]["captions"] = captions
    for row in rows:
        row["path"] = str(manifest.parent / row["path"])
    own = manifest.parent / f"changed-{len(change)}.jsonl"
    own.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return own


def test_captions_that_differ_in_case_and_full_stops_alone_are_right_for_both_clips_and_said_to_be(splits: Splits, tmp_path: Path) -> None:
    train = rewritten(splits.train, {0: ["a red video"], 1: ["A red video."], 2: ["a red, video"]})
    clips = read_clips(train)
    batch = BatchPlan(clips.clips, size=10, seed=0, meaning=clips.meaning).batch(0, 0)
    alike = [row for row, clip in enumerate(batch.clip_B) if clip < 3]
    assert batch.positive_BB[alike][:, alike].all()
    assert batch.positive_BB.sum() == 9 + 7
    said = heard(toy_recipe(train, splits.validation, tmp_path / "run", optim__steps=1)).line("said of several clips")
    assert "'a red video' of 3" in said and "count as right for all of them" in said


def test_two_lines_of_one_clip_are_one_clip_with_the_captions_of_both(tmp_path: Path, splits: Splits) -> None:
    video = splits.train.parent / json.loads(splits.train.read_text().splitlines()[0])["path"]
    rows = [{"path": str(video), "id": str(i), "caption": f"caption {i % 2}"} for i in range(3)] + [{"path": "other.mp4", "caption": "x"}]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = read_clips(tmp_path / "m.jsonl")
    assert (len(clips), clips.merged) == (2, 2)
    assert [clips.texts[t] for t in clips.clips[0].captions] == ["caption 0", "caption 1"]


@pytest.mark.parametrize(
    ("length", "words"), [(6, "set model.query.max_length up to 10"), (10, "toy takes no more. It was made for sentences")]
)
def test_paragraphs_beyond_the_tower_are_told_with_the_way_out(splits: Splits, tmp_path: Path, length: int, words: str) -> None:
    train = rewritten(splits.train, {i: ["red then blue " * (8 + i)] for i in range(8)})
    model = toy_config(query=QueryConfig(max_length=length, expand="off"))
    recipe = toy_recipe(train, splits.validation, tmp_path / "run", optim__steps=1)
    said = heard(dataclasses.replace(recipe, model=model)).line("train captions are longer than")
    assert words in said, said


def test_pads_that_hurt_long_captions_are_measured(tmp_path: Path, splits: Splits) -> None:
    # Trained without pads, asked with them: their vectors were never taught anything.
    recipe = toy_recipe(
        splits.train, splits.validation, tmp_path / "first", optim__epochs=120, data__reverse=False, run__validate_every=1000
    )
    trained = Path(start(recipe, display=QUIET)["model"])
    long = write_clips(tmp_path / "long", colour_pairs())
    rows = [json.loads(line) for line in long.read_text().splitlines()]
    for row in rows:
        first, second = row["captions"][0].split(" then ")
        row["captions"] = [f"{first} then {second}", f"a {first} then {second}", f"turns {first} then {second}"]
    long.write_text("\n".join(map(json.dumps, rows)))
    config = toy_config(query=QueryConfig(max_length=10, expand="on", auto_limit=4))
    model = load_toy(trained)
    with torch.no_grad():
        model.backbone.text_position[6:] *= 30  # what stands at the places of pads alone
    start_folder = tmp_path / "start"
    start_folder.mkdir()
    write_json(config, start_folder / "config.json")
    save_file({k: v.contiguous() for k, v in model.trainable_state().items()}, start_folder / "model.safetensors")
    second = toy_recipe(splits.train, long, tmp_path / "second", optim__steps=1, optim__lr=1e-9, data__validation_captions=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vctool.training.prepare.load_model", load_toy)
        second = dataclasses.replace(second, model=config, init=dataclasses.replace(second.init, model=start_folder))
        said = heard(second).line("pads hurt long captions")
    assert "of more than 4 tokens" in said and 'query.expand = "auto"' in said


def test_pads_that_are_not_counted_or_captions_that_are_short_say_nothing(splits: Splits, tmp_path: Path) -> None:
    assert not heard(toy_recipe(splits.train, splits.validation, tmp_path / "run", optim__steps=1)).line("pads hurt")


def test_a_result_below_the_zero_shot_start_is_said(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vctool.training.prepare.load_model", load_toy)
    good = toy_recipe(splits.train, splits.validation, tmp_path / "good", optim__epochs=20, data__reverse=False, run__validate_every=1000)
    trained = Path(start(good, display=QUIET)["model"])
    for rate, expected in ((3.0, True), (1e-9, False)):
        # Three steps at a rate that tears the weights apart; or so small that nothing changes.
        again = toy_recipe(
            splits.train,
            splits.validation,
            tmp_path / f"again-{rate}",
            optim__steps=3,
            optim__lr=rate,
            data__reverse=False,
            optim__warmup=0.0,
        )
        said = heard(dataclasses.replace(again, init=dataclasses.replace(again.init, model=trained))).line("below the zero-shot start")
        assert bool(said) is expected, said


def test_the_start_of_a_pretrained_backbone_is_its_pooled_text_against_the_mean_frame(splits: Splits, tmp_path: Path) -> None:
    import numpy as np

    from vctool.training.advice import zero_shot_mrr
    from vctool.training.prepare import prepare
    from vctool.training.stop import StopRequest

    it = prepare(toy_recipe(splits.train, splits.validation, tmp_path / "run"), tmp_path / "run", QUIET, StopRequest())
    found = zero_shot_mrr(it.model, it.validation.frames, it.validation.texts, it.queries, it.precision, as_it_is=False)
    model = it.model.eval()
    maps, _ = it.validation.frames.take(np.arange(5))
    with torch.no_grad():
        frames = torch.nn.functional.normalize(model.backbone.frame_out(maps.float()), dim=-1).mean(dim=1)
        text = it.validation.texts.take(it.queries.text_Q)
        words = model.backbone.text_head(text.state_BLW.float(), None, None).mean(dim=1)
    score = torch.nn.functional.normalize(words, dim=-1) @ torch.nn.functional.normalize(frames, dim=-1).T
    ranks = [int((row > row[next(iter(right))]).sum()) + 1 for row, right in zip(score, it.queries.relevant, strict=True)]
    assert found == pytest.approx(np.mean([1 / r for r in ranks]))
    assert toy_model(toy_config()).config.temporal.kind == "transformer"  # whose fresh weights take no part in it


def test_a_dead_branch_is_said_once_though_the_loss_falls(splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(config: ModelConfig, **options: Any) -> VideoColBERT:
        # The temporal encoder forgets its input: every clip has the same video tokens, and the gradient with them.
        model = toy_model(config, **options)
        model.temporal.forward = lambda feature, mask: (  # type: ignore[method-assign]
            torch.nn.functional.normalize(torch.ones(len(feature), 2, 16), dim=-1),
            torch.ones(len(feature), 2, dtype=torch.bool),
        )
        return model

    monkeypatch.setattr("vctool.training.prepare.build_model", dead)
    recipe = toy_recipe(splits.train, splits.validation, tmp_path / "run", optim__steps=8, run__stall_steps=4, run__validate_every=100)
    display = heard(recipe)
    assert len([line for line in display.lines if "branch v is dead" in line]) == 1
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if line["event"] == "step"]
    assert losses[-1] < losses[0]


def test_branches_out_of_balance_are_said(splits: Splits, tmp_path: Path) -> None:
    changes = {"optim__steps": 4, "run__stall_steps": 4, "run__validate_every": 100}
    even = heard(toy_recipe(splits.train, splits.validation, tmp_path / "even", **changes))
    assert not even.line("times harder")
    uneven = heard(toy_recipe(splits.train, splits.validation, tmp_path / "uneven", loss__video_weight=0.01, **changes))
    assert "branch f pulls" in uneven.line("times harder than branch v")


def test_a_batch_larger_than_the_data_is_all_of_it_and_said_to_be(splits: Splits, tmp_path: Path) -> None:
    display = heard(toy_recipe(splits.train, splits.validation, tmp_path / "run", optim__batch=64, optim__steps=2, data__reverse=False))
    assert display.line("is more than there is") == "optim.batch = 64 is more than there is: every batch is all 10 rows"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "shift_jis"])
def test_a_manifest_in_another_encoding_is_one_line_with_the_cure(splits: Splits, tmp_path: Path, encoding: str) -> None:
    text = "ein grüner Hund" if encoding != "shift_jis" else "犬が走る"
    (tmp_path / "m.jsonl").write_bytes(json.dumps({"path": "a.mp4", "caption": text}, ensure_ascii=False).encode(encoding))
    with pytest.raises(InputError, match="is not UTF-8 text") as caught:
        start(toy_recipe(tmp_path / "m.jsonl", splits.validation, tmp_path / "run"), display=QUIET)
    assert caught.value.hint == "save the manifest as UTF-8"


def test_captions_in_any_script_train(splits: Splits, tmp_path: Path) -> None:
    train = rewritten(splits.train, {0: ["ein grüner Hund"], 1: ["犬が走る"], 2: ["собака бежит"], 3: ["🐕‍🦺 כלב"]})
    assert start(toy_recipe(train, splits.validation, tmp_path / "run", optim__steps=2), display=QUIET)["steps"] == 2


def test_files_that_are_not_there_are_counted_named_and_left_out_and_strict_refuses_them(splits: Splits, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in splits.train.read_text().splitlines()]
    for number, row in enumerate(rows):
        row["path"] = str(splits.train.parent / row["path"]) if number > 1 else f"gone-{number}.mp4"
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = toy_recipe(tmp_path / "m.jsonl", splits.validation, tmp_path / "run", optim__steps=1)
    display = heard(recipe)
    assert "2 of 10 clips of m.jsonl cannot be read and are left out" in display.line("cannot be read")
    assert "gone-1.mp4: No such file" in display.line("gone-1")
    with pytest.raises(InputError, match=r"2 clips of .* cannot be read; the first: .*gone-0"):
        start(
            dataclasses.replace(
                recipe, data=dataclasses.replace(recipe.data, strict=True), run=dataclasses.replace(recipe.run, output=tmp_path / "strict")
            ),
            display=QUIET,
        )
