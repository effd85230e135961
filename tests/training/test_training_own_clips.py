"""Own clips: a gain is told from noise, the better model is the one that is pointed at, and nothing held out has been seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinymodel import make_video
from toy import COLOURS, QUIET, Splits, load_toy, toy_config, toy_model, toy_recipe, write_clips

from vctool.config import BackboneConfig, TemporalConfig, write_json
from vctool.errors import InputError, UsageProblem
from vctool.metrics import PerQuery
from vctool.models.adapter import LowRankAdapter
from vctool.training import own_clips
from vctool.training.batches import BatchPlan
from vctool.training.clips import TrainingClip, read_clips
from vctool.training.own_clips import FoldResult, Verdict, fresh_queries, judge
from vctool.training.prepare import prepare
from vctool.training.recipe import Recipe, data_overrides, find_recipe, load_recipe, recipe_dict, shipped_recipes
from vctool.training.run import start
from vctool.training.splits import families, fold_members, hold_out
from vctool.training.stop import StopRequest
from vctool.training.toml_writer import to_toml
from vctool.video.clip import VideoInput

torch = pytest.importorskip("torch")


def per_query(ranks: np.ndarray[Any, Any]) -> PerQuery:
    return PerQuery.from_ranks(ranks.astype(np.float64))


def drawn(seed: int, better: float, clips: int = 40, captions: int = 3) -> Verdict:
    """Ranks of a model that is `better` (share of captions moved up) beside those of one that only differs by noise."""
    rng = np.random.default_rng(seed)
    hard = rng.integers(1, 8, clips)  # captions of a clip are alike in difficulty: queries are not independent
    before = np.maximum(1, np.repeat(hard, captions) + rng.integers(-2, 3, clips * captions))
    after = np.maximum(1, np.repeat(hard, captions) + rng.integers(-2, 3, clips * captions))
    moved = rng.random(clips * captions) < better
    after = np.where(moved, 1, after)
    return judge([FoldResult([f"c{i // captions}" for i in range(clips * captions)], per_query(before), per_query(after), 0)], 1)


def test_a_true_gain_is_seen() -> None:
    verdict = drawn(0, 0.6)
    assert verdict.outcome == "gain"
    assert verdict.words()[-1] == "training helps"


def test_noise_is_called_a_gain_no_more_often_than_it_may_be() -> None:
    # Two-sided 5 %: about one in forty on the side of a gain. Of 24, more than 3 would happen once in 300 such tests.
    outcomes = [drawn(seed, 0.0).outcome for seed in range(24)]
    assert outcomes.count("gain") <= 3
    assert outcomes.count("none") >= 19


def test_no_gain_says_what_could_have_been_seen_and_keeps_the_zero_shot_model() -> None:
    words = drawn(2, 0.0).words()[-1]
    assert words.startswith("no measurable gain, keep the zero-shot model")
    assert "cannot be told from noise" in words


def test_an_adapter_changes_nothing_until_it_is_trained_and_then_does() -> None:
    torch.manual_seed(0)
    config = toy_config(backbone=BackboneConfig(kind="offline", name="toy", adapter_rank=3))
    plain, adapted = toy_model(toy_config()), toy_model(config)
    adapted.load_state_dict(plain.state_dict(), strict=False)
    ids, mask = torch.tensor([[2, 8, 5, 9, 3]]), torch.ones(1, 5, dtype=torch.long)
    assert torch.equal(plain.encode_query(ids, mask).query_BQD, adapted.encode_query(ids, mask).query_BQD)
    frames, some = torch.randint(0, 255, (2, 4, 8, 8, 3), dtype=torch.uint8), torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(plain.encode_video(frames, some).video_CVD, adapted.encode_video(frames, some).video_CVD)
    score = adapted.score(adapted.encode_query(ids, mask), adapted.encode_video(frames, some))
    (score.frame_BC.sum() + score.video_BC.sum()).backward()
    for name, adapter in adapted.backbone.adapters.named_children():
        assert isinstance(adapter, LowRankAdapter)
        assert float(adapter.up.weight.grad.norm()) > 0, name


def clip(name: str, group: str | None = None, start: float | None = None) -> TrainingClip:
    return TrainingClip(VideoInput(f"{name}{start}", Path(name), start, None, ("x",), {}), (0,), (), group)


def test_pieces_of_a_file_and_clips_of_a_group_are_one_family() -> None:
    clips = [
        clip("a", start=0.0),
        clip("b", "g"),
        clip("a", start=5.0),
        clip("c", "g"),
        clip("d"),
        clip("a", "h", start=9.0),
        clip("e", "h"),
    ]
    assert sorted(map(sorted, families(clips))) == [[0, 2, 5, 6], [1, 3], [4]]


def test_folds_share_out_every_clip_once_and_tear_no_family_apart() -> None:
    clips = [clip(f"v{i}", f"g{i // 3}" if i < 12 else None) for i in range(32)]
    folds = fold_members(clips, 4, seed=1)
    assert sorted(i for fold in folds for i in fold) == list(range(32))
    for i in range(0, 12, 3):
        assert len({next(f for f, fold in enumerate(folds) if j in fold) for j in (i, i + 1, i + 2)}) == 1
    assert max(map(len, folds)) - min(map(len, folds)) <= 3
    assert folds != fold_members(clips, 4, seed=2)


def test_too_few_clips_for_the_folds_are_refused() -> None:
    with pytest.raises(InputError, match="too few to hold out 4 times"):
        fold_members([clip(str(i)) for i in range(7)], 4, seed=0)


def manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_clips_are_held_out_by_their_names_the_same_for_any_order(tmp_path: Path) -> None:
    rows = [{"path": f"{i}.mp4", "caption": f"clip {i}"} for i in range(30)]
    train, held = hold_out(read_clips(manifest(tmp_path / "a.jsonl", rows)), 0.2)
    again, other = hold_out(read_clips(manifest(tmp_path / "b.jsonl", rows[::-1])), 6)
    assert (len(train), len(held)) == (24, 6)
    assert {c.input.id for c in held.clips} == {c.input.id for c in other.clips}
    assert not {c.input.id for c in again.clips} & {c.input.id for c in other.clips}


def test_a_caption_that_a_training_clip_has_is_not_asked(tmp_path: Path) -> None:
    rows = [{"path": "a.mp4", "captions": ["a dog", "a big dog"]}, {"path": "b.mp4", "captions": ["a dog", "a cat"]}]
    clips = read_clips(manifest(tmp_path / "m.jsonl", rows))
    queries, told = fresh_queries(clips.only([1]), clips.only([0]))
    assert queries is not None
    assert (queries.texts, told) == (("a cat",), 1)


@pytest.fixture
def own(tmp_path: Path, toy: None, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Fifteen toy clips, and a toy model whose heads are random to start from: there is something to learn."""
    monkeypatch.setattr("vctool.training.prepare.load_model", load_toy)
    names = list(COLOURS)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    train = write_clips(tmp_path / "clips", pairs, reversed_captions=False)
    torch.manual_seed(5)
    config = toy_config(temporal=TemporalConfig(kind="mean", layers=0, expansion_tokens=0))
    model = toy_model(config)
    (tmp_path / "start").mkdir()
    write_json(config, tmp_path / "start" / "config.json")
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in model.trainable_state().items()}, tmp_path / "start" / "model.safetensors")
    base = toy_recipe(train, train, tmp_path / "run", data__reverse=False, run__seed=3)
    tables = recipe_dict(base)
    del tables["model"], tables["data"]["validation"]  # the model is the one in init.model
    (tmp_path / "own.toml").write_text(to_toml(tables))
    changes = [
        f"init.model={tmp_path / 'start'}",
        "data.folds=3",
        "data.repeats=1",
        "data.caption_choice=all",
        "optim.epochs=20",
        "run.log_every=100",
        "loss.kind=dual_infonce",
    ]
    return load_recipe(tmp_path / "own.toml", changes)


def test_a_gain_ends_in_a_model_with_the_held_out_numbers(own: Recipe, tmp_path: Path) -> None:
    summary = start(own, display=QUIET)
    assert (summary["verdict"]["outcome"], summary["trained"], summary["model"]) == ("gain", True, str(tmp_path / "run" / "model"))
    story = json.loads((tmp_path / "run" / "model" / "training.json").read_text())
    held = {m["metric"]: m["b"] for m in summary["verdict"]["metrics"]}
    assert story["best"]["metrics"]["fv/MRR"] == held["MRR"]
    assert "held out in turn" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_without_a_gain_the_model_that_was_there_is_pointed_at_and_none_is_written(own: Recipe, tmp_path: Path) -> None:
    still = replace(own, optim=replace(own.optim, lr=1e-12, epochs=1))
    summary = start(still, display=QUIET)
    assert (summary["verdict"]["outcome"], summary["trained"], summary["model"]) == ("none", False, str(tmp_path / "start"))
    assert not (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_finished_folds_are_not_trained_again(own: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = replace(own, optim=replace(own.optim, epochs=1), data=replace(own.data, repeats=2))
    first = start(own, display=QUIET)
    one = sorted((tmp_path / "run" / "folds").rglob("round-*.json"))[0]
    one.write_text("{")  # cut off by a kill
    seen = []
    real = own_clips.evaluate_fold
    monkeypatch.setattr(own_clips, "evaluate_fold", lambda *a, **k: seen.append(1) or real(*a, **k))
    again = start(own, display=QUIET)
    assert len(seen) == 1
    assert again["verdict"] == first["verdict"]


def test_fewer_than_ten_clips_are_refused_with_their_number(own: Recipe) -> None:
    for count, words in ((1, "has 1 captioned clip:"), (9, "has 9 captioned clips:")):
        with pytest.raises(InputError, match=words):
            start(replace(own, data=replace(own.data, limit=count)), display=QUIET)


def test_folds_need_the_model_to_compare_with(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[data]\ntrain = "a.jsonl"\nfolds = 5\n')
    with pytest.raises(UsageProblem, match=r"name it as init\.model"):
        load_recipe(tmp_path / "r.toml")


def test_a_folder_names_its_manifests_and_its_validation_replaces_the_held_out_part(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        manifest(tmp_path / f"{name}.jsonl", [{"path": f"{name}.mp4", "caption": "x"}])
    (tmp_path / "r.toml").write_text('[data]\ntrain = "other.jsonl"\nhold_out = 0.1\n')
    recipe = load_recipe(tmp_path / "r.toml", data_overrides(tmp_path))
    assert (recipe.data.train.name, recipe.data.validation, recipe.data.hold_out) == ("train.jsonl", tmp_path / "validation.jsonl", 0)
    with pytest.raises(InputError, match=r"has no train\.jsonl"):
        data_overrides(tmp_path / "..")


def test_a_recipe_goes_by_its_name_and_a_misspelt_one_names_the_nearest() -> None:
    assert find_recipe(Path("own-clips")) == shipped_recipes()["own-clips"]
    with pytest.raises(InputError, match="own-clips"):
        find_recipe(Path("own-clip"))


def test_exactly_one_thing_chooses_the_weights(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('[data]\ntrain = "a.jsonl"\nvalidation = "b.jsonl"\nhold_out = 0.1\n')
    with pytest.raises(UsageProblem, match="says what chooses the weights"):
        load_recipe(tmp_path / "r.toml")


def test_the_small_vit_of_our_own_is_built_through_open_clip() -> None:
    pytest.importorskip("open_clip", reason="open_clip is part of the extra `train`")
    from vctool.models.checkpoint import build_model

    config = load_recipe(shipped_recipes()["world-vit-scratch"]).model
    model = build_model(config)
    tokens = model.encode_video(torch.zeros(2, 8, 48, 48, 3, dtype=torch.uint8), torch.ones(2, 8, dtype=torch.bool))
    assert tokens.video_CVD.shape == (2, 10, 96)


def test_choosing_by_the_test_clips_goes_by_its_own_name_alone(splits: Splits, test_clips: Path, tmp_path: Path, toy: None) -> None:
    with pytest.raises(UsageProblem, match=r"data\.validation is data\.test"):
        start(toy_recipe(splits.train, test_clips, tmp_path / "refused", data__test=test_clips, optim__steps=1), display=QUIET)
    recipe = toy_recipe(splits.train, splits.validation, tmp_path / "run", data__test=test_clips, optim__steps=1)
    recipe = replace(recipe, data=replace(recipe.data, validation=None, select_on_test=True))
    model = Path(start(recipe, display=QUIET)["model"])
    assert "TEST clips" in (model / "README.md").read_text() and "not a held-out result" in (model / "README.md").read_text()
    assert json.loads((model / "training.json").read_text())["recipe"]["data"]["select_on_test"] is True


def test_held_out_clips_choose_the_weights_and_never_train(splits: Splits, test_clips: Path, tmp_path: Path, toy: None) -> None:
    recipe = toy_recipe(splits.train, splits.validation, tmp_path / "run", data__test=test_clips, optim__steps=2)
    recipe = replace(recipe, data=replace(recipe.data, validation=None, hold_out=3))
    story = json.loads((Path(start(recipe, display=QUIET)["model"]) / "training.json").read_text())
    assert (story["data"]["train"]["clips"], story["data"]["validation"]["clips"]) == (7, 3)


def test_a_frame_a_second_is_taken_and_never_more_than_the_model_has(tmp_path: Path, toy: None) -> None:
    for name, seconds in (("short", 2.0), ("long", 9.0)):
        make_video(tmp_path / f"{name}.mp4", ["red"], seconds=seconds, size=(32, 32))
    for name, start_second in (("train", 0.0), ("val", 1.0)):
        rows = [{"path": f"{v}.mp4", "id": f"{v}{name}", "start": start_second, "caption": f"{v} red"} for v in ("short", "long")]
        manifest(tmp_path / f"{name}.jsonl", rows)
    recipe = toy_recipe(tmp_path / "train.jsonl", tmp_path / "val.jsonl", tmp_path / "run", data__fps=1.0, data__reverse=False)
    it = prepare(recipe, tmp_path / "run", QUIET, StopRequest())
    assert it.train.frames.rows.counts_N.tolist() == [2, 4]  # the toy has four frames


def test_every_caption_of_a_clip_is_right_for_each_of_its_rows_in_a_batch(splits: Splits) -> None:
    clips = read_clips(splits.train)
    batch = BatchPlan(clips.clips, size=20, seed=0, caption_choice="all", meaning=clips.meaning).batch(0, 0)
    same = batch.clip_B[:, None] == batch.clip_B[None]
    assert same.sum() > len(same)  # a clip is there with several captions
    assert np.array_equal(batch.positive_BB, same)


def test_checkpoints_of_a_frozen_backbone_hold_what_training_changes_and_no_more(splits: Splits, tmp_path: Path, toy: None) -> None:
    config = toy_config(backbone=BackboneConfig(kind="open_clip", name="open", adapter_rank=2))
    recipe = toy_recipe(splits.train, splits.validation, tmp_path / "run", optim__steps=2, optim__freeze_backbone=True)
    start(replace(recipe, model=config), display=QUIET)
    kept = torch.load(sorted((tmp_path / "run" / "checkpoints").glob("step-*.pt"))[-1], weights_only=True)["model"]
    assert {name.split(".")[1] for name in kept if name.startswith("backbone.")} == {"adapters"}
    assert any(name.startswith("temporal.") for name in kept)
