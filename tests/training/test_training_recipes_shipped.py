"""The recipes that ship: every one parses, builds its model in miniature and trains on data shaped like its benchmark's."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip", reason="open_clip is part of the extra `train`")

from tinymodel import COLOURS, make_video  # noqa: E402
from tinytowers import WIDTH, tiny_model  # noqa: E402
from toy import QUIET  # noqa: E402

from vctool.config import BackboneConfig, QueryConfig, TemporalConfig  # noqa: E402
from vctool.errors import InputError, UsageProblem  # noqa: E402
from vctool.models.checkpoint import load_model, save_model  # noqa: E402
from vctool.models.video_colbert import VideoColBERT  # noqa: E402
from vctool.training.prepare import make_model  # noqa: E402
from vctool.training.recipe import RECIPES, Recipe, data_overrides, load_recipe, quoted, recipe_dict, shipped_recipes  # noqa: E402
from vctool.training.run import start  # noqa: E402

NAMES = [name for name in shipped_recipes() if name.endswith(("-b32", "-b16"))]
# One of every benchmark and every tower; the whole grid is slow.
QUICK = {"msrvtt-9k-clip-b32", "msvd-siglip-b16", "didemo-clip-b16", "lsmdc-clip-b32"}
CAPTIONS = {"msrvtt-9k": 20, "msrvtt-7k": 20, "msvd": 41, "vatex": 10, "didemo": 1, "activitynet": 1, "lsmdc": 1}


def split_name(name: str) -> tuple[str, str]:
    """`msrvtt-9k-clip-b32` as benchmark and tower."""
    benchmark = next(own for own in CAPTIONS if name.startswith(own))
    return benchmark, name.removeprefix(benchmark + "-")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for i in range(8):
        make_video(folder / f"{i}.mp4", [list(COLOURS)[i % 6]], seconds=0.6, size=(32, 32))
    return folder


def shaped(benchmark: str, clips: Path, folder: Path) -> Path:
    """Manifests as `vctool data manifest` writes them: captions in the benchmark's number, paragraphs, pieces of films."""
    names = {
        "train": range(5),
        "test": range(7, 8),
        **({} if benchmark in ("msrvtt-9k", "msrvtt-7k", "activitynet") else {"validation": range(5, 7)}),
    }
    for split, numbers in names.items():
        rows = []
        for i in numbers:
            count = CAPTIONS[benchmark] if split == "train" else 1
            texts = [f"{list(COLOURS)[i % 6]} clip said in way {n}" for n in range(count)]
            if benchmark in ("didemo", "activitynet"):
                texts = [" ".join(f"first something of colour {list(COLOURS)[i % 6]} is seen, and then part {n} of it." for n in range(8))]
            row: dict[str, object] = {"path": str(clips / f"{i}.mp4"), "id": f"{split}-{i}", "captions": texts}
            rows += (
                [row]
                if benchmark != "lsmdc"
                else [row | {"id": f"{i}-{k}", "start": 0.3 * k, "end": 0.3 * k + 0.3, "captions": [f"{texts[0]} {k}"]} for k in (0, 1)]
            )
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def miniature(recipe: Recipe, tower: str, output: Path) -> Recipe:
    """The recipe with toy towers of the same class, a shorter temporal encoder, and batches and lengths that a test can afford."""
    model = dataclasses.replace(
        recipe.model,
        embed_dim=WIDTH,
        frames=2,
        backbone=dataclasses.replace(recipe.model.backbone, name="tiny-siglip" if "siglip" in tower else "tiny-clip"),
        query=dataclasses.replace(recipe.model.query, max_length=16),
        temporal=dataclasses.replace(recipe.model.temporal, layers=1, head_width=16, max_frames=8),
    )
    assert isinstance(model.temporal, TemporalConfig)
    return dataclasses.replace(
        recipe,
        model=model,
        init=dataclasses.replace(recipe.init, checkpoint=None, tokenizer=None),
        optim=dataclasses.replace(recipe.optim, batch=4, steps=2, precision="fp32"),
        data=dataclasses.replace(recipe.data, workers=0, hold_out=2 if recipe.data.hold_out else 0),
        run=dataclasses.replace(recipe.run, output=output, threads=1),
    )


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES])
def test_a_shipped_recipe_trains_in_miniature(name: str, clips: Path, tmp_path: Path) -> None:
    benchmark, tower = split_name(name)
    recipe = load_recipe(RECIPES / f"{name}.toml", data_overrides(shaped(benchmark, clips, tmp_path)))
    summary = start(miniature(recipe, tower, tmp_path / "run"), display=QUIET)
    story = json.loads((Path(summary["model"]) / "training.json").read_text())
    assert (summary["steps"], story["data"]["validation"]["clips"]) == (2, 4 if benchmark == "lsmdc" else 2)
    assert story["best"]["metrics"]["fv/R@1"] >= 0


def test_the_grid_of_recipes_is_whole() -> None:
    towers = ("clip-b32", "clip-b16", "siglip-b16")
    assert set(NAMES) == {f"{benchmark}-{tower}" for benchmark in CAPTIONS for tower in towers}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_says_what_its_parts_say(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.toml")
    benchmark, tower = split_name(name)
    assert (recipe.model.name, recipe.run.name) == (name, name)
    assert recipe.model.frames == (64 if benchmark in ("didemo", "activitynet") else 12)
    length = 64 if tower == "siglip-b16" or benchmark in ("didemo", "activitynet") else 32
    assert (recipe.model.query.max_length, recipe.model.query.expand, recipe.model.temporal.expansion_tokens) == (length, "on", 2)
    assert (recipe.optim.lr, recipe.optim.backbone_lr, recipe.loss.kind) == (1e-4, 1e-7, "dual_sigmoid")
    assert not recipe.data.select_on_test and recipe.data.test is not None
    assert recipe.data.train == Path.cwd() / benchmark / "train.jsonl"


def test_every_value_of_a_part_is_marked_known_or_assumed() -> None:
    free = (
        "train",
        "validation",
        "test",
        "hold_out",
        "workers",
        "precision",
        "validate_every",
        "tensorboard",
        "max_frames",
        "checkpoint",
        "tokenizer",
        "caption_choice",
    )
    for path in [*RECIPES.glob("benchmarks/*.toml"), *RECIPES.glob("towers/*.toml")]:
        for line in path.read_text().splitlines():
            key = line.split(" = ")[0]
            if " = " in line and not line.startswith("#") and key not in free:
                assert "# known" in line or "# assumed" in line, f"{path.name}: {line}"


def test_a_recipe_changes_its_bases_and_the_later_one_wins(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.toml").write_text('[data]\ntrain = "a.jsonl"\nvalidation = "v.jsonl"\n[optim]\nlr = 1.0\nbatch = 4\n')
    (tmp_path / "b.toml").write_text("[optim]\nlr = 2.0\nepochs = 7\n")
    (tmp_path / "own.toml").write_text('base = ["parts/a.toml", "b.toml"]\n[optim]\nepochs = 9\n')
    recipe = load_recipe(tmp_path / "own.toml")
    assert (recipe.optim.lr, recipe.optim.batch, recipe.optim.epochs) == (2.0, 4, 9)
    assert recipe.data.train == tmp_path / "parts" / "a.jsonl"
    assert "base" not in recipe_dict(recipe)


@pytest.mark.parametrize(
    ("text", "problem", "words"),
    [
        ('base = "own.toml"', UsageProblem, "its own base"),
        ('base = "none.toml"', InputError, "a base of"),
        ("base = 3", UsageProblem, "base is a recipe file"),
    ],
    ids=["itself", "missing", "number"],
)  # fmt: skip
def test_a_base_that_cannot_be_is_one_line(tmp_path: Path, text: str, problem: type[Exception], words: str) -> None:
    (tmp_path / "own.toml").write_text(text + "\n")
    with pytest.raises(problem, match=words):
        load_recipe(tmp_path / "own.toml")


def test_the_towers_of_a_model_directory_are_a_checkpoint(clips: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    save_model(tiny_model("tiny-clip", temporal="mean"), tmp_path / "fetched")
    recipe = load_recipe(RECIPES / "msvd-clip-b32.toml", data_overrides(shaped("msvd", clips, tmp_path)))
    small = miniature(recipe, "clip-b32", tmp_path / "run")
    small = dataclasses.replace(small, init=dataclasses.replace(small.init, checkpoint=tmp_path / "fetched"))
    model, _ = make_model(small, torch.device("cpu"))
    kept = load_model(tmp_path / "fetched")
    assert all(torch.equal(value, kept.backbone.state_dict()[name]) for name, value in model.backbone.state_dict().items())
    assert model.config.temporal.kind == "transformer" and small.init.model is None
    other = dataclasses.replace(small, model=dataclasses.replace(small.model, backbone=BackboneConfig("open_clip", "tiny-siglip")))
    with pytest.raises(UsageProblem, match="are tiny-clip, the recipe's are tiny-siglip"):
        make_model(other, torch.device("cpu"))


def test_own_clips_trains_adapters_alone_behind_open_clip_towers(tmp_path: Path) -> None:
    torch.manual_seed(7)
    config = dataclasses.replace(tiny_model("tiny-clip", temporal="mean").config, query=QueryConfig("pooled", expand="off", max_length=16))
    save_model(VideoColBERT(config, tiny_model("tiny-clip", temporal="mean").backbone), tmp_path / "fetched")
    rows = []
    for i, (name, other) in enumerate(itertools.combinations(COLOURS, 2)):
        make_video(tmp_path / f"{i}.mp4", [name, other], seconds=0.2, size=(32, 32))
        rows.append({"path": f"{i}.mp4", "captions": [f"{name} and {other}", f"first {name}"]})
    (tmp_path / "clips.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sets = [f"data.train={quoted(tmp_path / 'clips.jsonl')}", f"init.model={quoted(tmp_path / 'fetched')}"]
    sets += ["data.folds=2", "data.repeats=1", "optim.epochs=1", "data.workers=0", f"run.output={quoted(tmp_path / 'run')}"]
    recipe = load_recipe(RECIPES / "own-clips.toml", sets)
    model, _ = make_model(recipe, torch.device("cpu"))
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad} == {"adapters"}
    verdict = start(recipe, display=QUIET)["verdict"]
    assert verdict["clips"] == 15 and verdict["captions"] + verdict["captions_not_asked"] == 30
    # A tower's weights must not be copied for each fold.
    assert not list((tmp_path / "run").rglob("*.pt"))
