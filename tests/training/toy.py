"""A backbone of a few hundred parameters, with clips and captions in which content and the order of time both matter.

A clip shows one colour and then another. Its frame map is the mean colour of each frame through a fixed "tower".
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from tinymodel import COLOURS, make_video
from torch import Tensor, nn

from vctool.config import BackboneConfig, ModelConfig, PreprocessConfig, QueryConfig, TemporalConfig, read_json
from vctool.models.backbone import Backbone
from vctool.models.losses import LossConfig, RetrievalLoss
from vctool.models.video_colbert import VideoColBERT
from vctool.training.batches import Batch
from vctool.training.display import Display
from vctool.training.encoder import BatchInputs, RowInputs
from vctool.training.gradients import GradientPass
from vctool.training.precision import Precision
from vctool.training.ranks import Ranks
from vctool.training.recipe import DataConfig, OptimConfig, Recipe, RunConfig
from vctool.training.texts import TextInput

WIDTH, LENGTH, SIDE = 16, 10, 8
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "then", "turns", "video", *COLOURS]


class Splits(NamedTuple):
    """Manifests of toy clips."""

    train: Path
    validation: Path


class ToyBackbone(Backbone):
    """Frozen tower: 3 colour channels to 6. Trained: 6 to 16, and a word table to 16. `packaged` says whether it is frozen."""

    embed_dim, context_length = WIDTH, LENGTH
    preprocess = PreprocessConfig(size=SIDE, resize="squash", interpolation="bilinear")

    def __init__(self, packaged: bool = True) -> None:
        super().__init__()
        self.packaged = packaged
        self.tower = nn.Linear(3, 6)
        self.words = nn.Embedding(len(WORDS), 12)
        with torch.random.fork_rng():
            torch.manual_seed(99)
            for parameter in (*self.tower.parameters(), *self.words.parameters()):
                nn.init.normal_(parameter)
        self.frame_out = nn.Linear(6, WIDTH)
        self.text_position = nn.Parameter(torch.randn(LENGTH, 12) * 0.3)
        self.text_out = nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.Linear(24, WIDTH))
        for parameter in self.frozen_parameters():
            parameter.requires_grad_(False)

    def frozen_parameters(self) -> list[nn.Parameter]:
        return [*self.tower.parameters(), *self.words.parameters()] if self.packaged else []

    def frame_map(self, frame_NHWC: Tensor) -> Tensor:
        return self.tower(frame_NHWC.float().mean(dim=(1, 2)) / 64 - 2)

    def frame_head(self, frame_map: Tensor) -> Tensor:
        return self.frame_out(frame_map)

    def text_states(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        return self.words(input_ids_BL)

    def text_head(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        # Each word sees itself, its place and the word before it: enough to know what comes after "then".
        placed = state_BLW + self.text_position[: state_BLW.shape[1]]
        return self.text_out(torch.cat([placed, placed.roll(1, dims=1)], dim=-1))

    def text_pooled(self, state_BLW: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        return self.text_head(state_BLW, input_ids_BL, attention_mask_BL).mean(dim=1)

    def write_tokenizer(self, folder: Path, length: int | None = None) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = {"kind": "bert", "context_length": length or LENGTH, "pad_id": 0}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def toy_model(config: ModelConfig, *, checkpoint: Path | None = None) -> VideoColBERT:
    """Stands in for `build_model`; the name `open` gives a backbone whose towers are not frozen."""
    return VideoColBERT(config, ToyBackbone(packaged=config.backbone.name != "open"))


def load_toy(folder: Path) -> VideoColBERT:
    """Stands in for `load_model`: a toy from its model directory."""
    model = toy_model(read_json(ModelConfig, folder / "config.json"))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model.eval()


def toy_config(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "name": "toy",
        "embed_dim": WIDTH,
        "frames": 4,
        "backbone": BackboneConfig(kind="offline", name="toy"),
        "query": QueryConfig(max_length=LENGTH, expand="off"),
        "temporal": TemporalConfig(layers=1, head_width=8, mlp_ratio=2.0, max_frames=8, expansion_tokens=1),
    }
    return ModelConfig(**{**values, **changes})


def write_clips(folder: Path, pairs: Sequence[tuple[str, str]], *, reversed_captions: bool = True) -> Path:
    """A clip for each pair of colours, the first and then the second; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for first, second in pairs:
        name = f"{first}-{second}.mp4"
        make_video(folder / name, [first, second], seconds=0.2, size=(32, 32))
        row: dict[str, Any] = {"path": name, "captions": [f"{first} then {second}", f"a video turns {first} then {second}"]}
        if reversed_captions:
            row["reversed_captions"] = [f"{second} then {first}", f"a video turns {second} then {first}"]
        lines.append(json.dumps(row))
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "clips.jsonl"


def colour_pairs() -> list[tuple[str, str]]:
    """All 15 unordered pairs of six colours."""
    return list(itertools.combinations(COLOURS, 2))


def toy_recipe(train: Path, validation: Path, output: Path, **changes: Any) -> Recipe:
    """A recipe for the toy; `changes` are `table__key=value`. `model__tower="open"`: towers that are not frozen."""
    recipe = Recipe(
        data=DataConfig(train=train, validation=validation, workers=0, reverse=True, cache=output.parent / "cache"),
        model=toy_config(),
        optim=OptimConfig(lr=5e-3, batch=6, epochs=3, weight_decay=0.01),
        loss=LossConfig(log_scale=2.3, bias=-2.0),
        run=RunConfig(output=output, tensorboard=False, log_every=1, name="toy"),
    )
    if "model__tower" in changes:
        changes["model__backbone"] = BackboneConfig(kind="offline", name=changes.pop("model__tower"))
    for key, value in changes.items():
        table, name = key.split("__")
        recipe = dataclasses.replace(recipe, **{table: dataclasses.replace(getattr(recipe, table), **{name: value})})
    return recipe


QUIET = Display(quiet=True)


def toy_batch(rows: int) -> tuple[Batch, RowInputs]:
    """A batch of `rows` clips and captions made of numbers; some clips come twice, once backwards, and captions are shared."""
    draw = torch.Generator().manual_seed(rows)
    clips = max(1, rows * 2 // 3)
    row_B = torch.arange(rows) % clips
    mask_UF = torch.arange(4)[None] < 1 + torch.arange(clips)[:, None] % 4
    words = torch.randint(4, len(WORDS), (rows, LENGTH), generator=draw)
    length_B1 = 2 + torch.arange(rows)[:, None] % (LENGTH - 3)
    text = TextInput(torch.randn(rows, LENGTH, 12, generator=draw), words, (torch.arange(LENGTH)[None] < length_B1).long())
    frames = torch.randn(clips, 4, 6, generator=draw)
    reversed_B = torch.arange(rows) >= clips
    positive_BB = torch.eye(rows, dtype=torch.bool)
    positive_BB[0, -1] = True
    number_B = row_B.numpy().astype(np.int64)
    batch = Batch(number_B, reversed_B.numpy(), np.arange(rows, dtype=np.int64), positive_BB.numpy())
    return batch, RowInputs(frames, mask_UF, row_B, reversed_B, text)


def rows_of(whole: RowInputs, rows: Tensor) -> RowInputs:
    """Some rows of a toy batch, with the clips that they show."""
    clip_U, row_B = whole.row_B[rows].unique(return_inverse=True)
    text = TextInput(*(side[rows] for side in whole.text if side is not None))
    return RowInputs(whole.frames[clip_U], whole.frame_mask_UF[clip_U], row_B, whole.reversed_B[rows], text)


def batch_gradients(ranks: Ranks, rows: int, *, encode_rows: int = 0, kind: str = "dual_sigmoid", **model: Any) -> dict[str, Tensor]:
    """Loss and gradients of one toy batch in float64, as the training loop takes them, by parameter name."""
    torch.manual_seed(5)
    toy = toy_model(toy_config(**model)).double()
    loss = RetrievalLoss(LossConfig(kind=kind, log_scale=2.3, bias=-2.0, separate_scale=True, reversal_weight=0.5)).double()  # type: ignore[arg-type]
    batch, whole = toy_batch(rows)
    own = torch.arange(rows)[ranks.span(rows)]
    shown = own if len(own) else torch.zeros(1, dtype=torch.int64)
    parts = [rows_of(whole, part) for part in shown.split(encode_rows or len(shown))]
    precision = Precision(torch.device("cpu"), "fp32", torch.float64)
    passed = GradientPass(toy, loss, precision, ranks, pixels=False)
    out = passed(BatchInputs(batch, ranks.counts(rows), len(own), parts), 0, 0, scale=lambda total: total, check=lambda value: None)
    named = [*toy.named_parameters(), *((f"loss.{name}", p) for name, p in loss.named_parameters())]
    return {"total": out.total} | {name: p.grad for name, p in named if p.grad is not None}
