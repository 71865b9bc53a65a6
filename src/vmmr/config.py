"""The settings of one training run: one frozen definition that is Python, YAML and command line at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from vmmr.errors import ConfigError
from vmmr.levels import Feed, HierarchyForm, Taps, check_names

__all__ = ["OF_CLASSIFIER", "Balancer", "TrainConfig", "UnknownScore"]

Balancer = Literal[
    "none",
    "aligned_mtl",
    "avgnorm",
    "cagrad",
    "db_mtl",
    "dwa",
    "fairgrad",
    "fixed",
    "gradnorm",
    "imtl_g",
    "mgda",
    "nash_mtl",
    "pcgrad",
    "random",
    "uncertainty",
    "upgrad",
]

RuntimeName = Literal["auto", "torch", "onnxruntime", "openvino"]
"""What runs a network; `auto` is the fastest that is installed and fits."""

UnknownScore = Literal[
    "none",
    "ash",
    "dice",
    "discriminant_max_logit",
    "energy",
    "gen",
    "guided_max_logit",
    "himplos",
    "himplos_mask",
    "himplos_max_logit",
    "himplos_msp",
    "himplos_smooth",
    "himplos_unclipped",
    "knn",
    "knn_pca",
    "mahalanobis",
    "max_logit",
    "msp",
    "nnguide",
    "react",
    "relative_mahalanobis",
    "scale",
    "vim",
]

OF_CLASSIFIER = frozenset(name for name in get_args(UnknownScore) if name.startswith("himplos")) | {
    "ash",
    "dice",
    "discriminant_max_logit",
    "nnguide",
    "react",
    "scale",
    "vim",
}
"""The unknown scores that read the classifier: logits = features @ weight.T + bias has to be what the network says."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train. A recipe fills it in; flags and YAML override single fields; contradictions are refused.

    Attributes:
        method: what is trained: plain, pmal (the teacher) or pmd (the student of a teacher).
        mode: published follows the authors to the letter, fast is ours. Plain training has no modes.
        backbone: any timm name.
        backbone_options: further arguments of timm.create_model, for example {"pad_type": "same"}.
        weights: local .safetensors file with the backbone's starting weights.
        pretrained: let timm load its own weights instead.
        frozen: layer, such as blocks.5 or layer4, before which all stays as it starts; without one all is learned.
        frozen_views: views of each image for which the layers before `frozen` are computed, once.
        statistics: of the input: half (mean and std 0.5), backbone (of its pretrained_cfg) or image (each its own).
        size: side of the square input, in pixels.
        crop: input side over resized side; the rest is room for random crops (PMAL: 448 / 550).
        resize: squash ignores the aspect, shortest keeps it and crops, letterbox keeps it and pads.
        padding: black border, in pixels, before the random crop.
        epochs: passes over the training images.
        batch_size: images a batch, over all devices together; an incomplete last batch is skipped.
        balanced: draw every class equally often instead of every image once.
        optimizer: sgd (momentum 0.9) or adamw.
        lr: peak learning rate of heads, decoders and classifier.
        trunk_lr: peak learning rate of the trunk.
        weight_decay: applied to everything by sgd, to matrices and kernels only by adamw.
        schedule: epoch_cosine is constant within an epoch (published), one_cycle warms up and anneals each step.
        warmup: share of the run that one_cycle warms up.
        clip_norm: largest joint gradient norm; 0 for none.
        smoothing: label smoothing.
        sam_rho: radius of sharpness-aware minimisation; 0 for none.
        sam_every: take the sharpness-aware gradient every so many steps, plain ones between.
        noise: what training draws from: none, published, gaussian, strong, augmix or varied.
        consistency: weight of AugMix's divergence between answers to clean and noisy views (published 12); plain only.
        heads: form of the denoising-recognition heads: published, lean or slim.
        restoration_loss: charbonnier (published) or mse.
        alpha: weight of the restoration loss.
        restore_every: fast PMAL restores, and classifies what it restored, every so many steps.
        restored_weight: weight of classifying the restored image in fast PMAL; 0 leaves that pass out.
        keep: what of PMAL is validated and kept: heads, all of them in the mean, or the plain trunk without them.
        levels: what is answered, of make, model, class, body, colour, viewpoint, year, year_value; none: classes, flat.
        hierarchy: what feeds what among make, model and class: parallel, coarse_to_fine, fine_to_coarse or conditional.
        feed: what a cascade passes on: logits, softmax or a learned embedding of it.
        stop_gradient: a level's loss does not reach the level that feeds it.
        teacher_forcing: while training, a cascade passes on the truth where it is known.
        head_dropout: share of the pooled features that each level drops, drawn for each anew.
        level_weights: weight of a level's loss by name; 1 where none is given.
        marginal_weight: weight of the coarsest level's likelihood as the finest one tells it; 0 for none.
        taps: levels that PMAL's heads answer: all at every depth, or shallow_first (make, then model, then all).
        unknown: score that tells unknown vehicles: none, or a name of `vmmr.unknown.SCORES`; the bundle holds it.
        back_off: precision that a level needs on validation images, else a coarser one is said; 0 says the finest.
        balancer: rule that weighs losses against each other: none, or a name of `vmmr.balancing.BALANCERS`.
        balancer_options: arguments of the rule, for example {"scale": "max_norm"}.
        balance_over: what is summed before it is weighed: tasks (recognition, restoration, restored) or levels.
        measure_every: compare the gradients for the log every so many steps, whatever the rule; 0 never.
        dense_zero_grads: unused parameters get zero gradients (momentum and decay go on) instead of none.
        norm_updates: which training passes change BatchNorm running statistics: all, or those of whole-network passes.
        feature_weight: weight of the student's feature terms (published 100).
        relative_features: divide each feature term by the teacher's mean square.
        logit_weight: weight of the student's logit term.
        student_init: fresh starts as `weights` say, teacher copies the teacher's trunk.
        distil_share: share of the epochs in which the teacher is asked; labels alone after that (published 0.5).
        precise_norm: at the end, take the BatchNorm statistics anew from training images: none, clean or noisy.
        ema: decay of the weight average that is evaluated and kept; 0 for none.
        precision: 32-true or bf16-mixed, as in Lightning Fabric.
        channels_last: memory layout of images and weights.
        val_fraction: share of the training images carved out for validation where the data has no such split.
        near_duplicates: keep near duplicates together when carving, not only identical files.
        checkpoint_minutes: write a checkpoint at least so often, and after every epoch.
        memory_gib: hold the decoded images in memory up to this size, decode on demand beyond.
        seed: of everything drawn.
    """

    method: Literal["plain", "pmal", "pmd"] = "plain"
    mode: Literal["published", "fast"] = "fast"
    backbone: str = "mobilenetv2_100"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    pretrained: bool = False
    frozen: str = ""
    frozen_views: int = 8
    statistics: Literal["half", "backbone", "image"] = "half"
    size: int = 128
    crop: float = 0.875
    resize: Literal["squash", "shortest", "letterbox"] = "squash"
    padding: int = 0
    epochs: int = 8
    batch_size: int = 32
    balanced: bool = False
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 4e-3
    trunk_lr: float = 1e-3
    weight_decay: float = 0.05
    schedule: Literal["epoch_cosine", "one_cycle"] = "one_cycle"
    warmup: float = 0.25
    clip_norm: float = 0.0
    smoothing: float = 0.1
    sam_rho: float = 0.0
    sam_every: int = 1
    noise: Literal["none", "published", "gaussian", "strong", "augmix", "varied"] = "none"
    consistency: float = 0.0
    heads: Literal["published", "lean", "slim"] = "lean"
    restoration_loss: Literal["charbonnier", "mse"] = "charbonnier"
    alpha: float = 1.0
    restore_every: int = 1
    restored_weight: float = 1.0
    keep: Literal["heads", "trunk"] = "heads"
    levels: list[str] = field(default_factory=list)
    hierarchy: HierarchyForm = "parallel"
    feed: Feed = "softmax"
    stop_gradient: bool = False
    teacher_forcing: bool = False
    head_dropout: float = 0.0
    level_weights: dict[str, float] = field(default_factory=dict)
    marginal_weight: float = 0.0
    taps: Taps = "all"
    unknown: UnknownScore = "none"
    back_off: float = 0.0
    balancer: Balancer = "none"
    balancer_options: dict[str, Any] = field(default_factory=dict)
    balance_over: Literal["tasks", "levels"] = "tasks"
    measure_every: int = 0
    dense_zero_grads: bool = False
    norm_updates: Literal["all", "whole"] = "all"
    feature_weight: float = 1.0
    relative_features: bool = True
    logit_weight: float = 1.0
    student_init: Literal["fresh", "teacher"] = "teacher"
    distil_share: float = 1.0
    precise_norm: Literal["none", "clean", "noisy"] = "none"
    ema: float = 0.0
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    channels_last: bool = True
    val_fraction: float = 0.1
    near_duplicates: bool = True
    checkpoint_minutes: float = 5.0
    memory_gib: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        def refuse(what: str, do: str, *fields: str) -> None:
            raise ConfigError(what, got=", ".join(f"{name}={getattr(self, name)!r}" for name in fields), do=do)

        for name in ("size", "epochs", "batch_size", "sam_every", "restore_every", "frozen_views"):
            if getattr(self, name) < 1:
                refuse(f"{name} must be at least 1", "raise it", name)
        weights = ("marginal_weight", "alpha", "restored_weight", "consistency", "feature_weight", "logit_weight")
        for name in (
            "lr",
            "trunk_lr",
            "weight_decay",
            "clip_norm",
            "sam_rho",
            "measure_every",
            *weights,
            "padding",
            "memory_gib",
        ):
            if not getattr(self, name) >= 0:
                refuse(f"{name} must not be negative", "raise it", name)
        for name in ("crop", "distil_share"):
            if not 0 < getattr(self, name) <= 1:
                refuse(f"{name} is a share", "pass a value in (0, 1]", name)
        for name in ("smoothing", "ema", "warmup", "val_fraction", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                refuse(f"{name} out of range", "pass a value in [0, 1)", name)
        if self.weights is not None and self.pretrained:
            refuse("two sources of starting weights", "give one of them", "weights", "pretrained")
        if self.batch_size < 2:
            refuse("batch statistics need two images", "raise it", "batch_size")
        if self.mode == "published" and self.method == "pmal" and self.noise != "published":
            refuse("published PMAL has one noise model", "use noise='published' or mode='fast'", "mode", "noise")
        if self.mode == "published" and self.method == "pmd" and (self.noise != "none" or self.student_init != "fresh"):
            refuse("published PMD starts fresh and sees no noise", "use mode='fast'", "mode", "noise", "student_init")
        if (self.restore_every, self.restored_weight) != (1, 1.0) and (self.method, self.mode) != ("pmal", "fast"):
            refuse("these are of fast PMAL", "leave them", "restore_every", "restored_weight", "method", "mode")
        if self.keep != "heads" and self.method != "pmal":
            refuse("only PMAL has heads to leave behind", "leave it", "keep", "method")
        if self.consistency and (self.method != "plain" or self.noise == "none"):
            refuse(
                "consistency compares noisy answers of plain training", "set noise", "consistency", "method", "noise"
            )
        if self.frozen and (self.method != "plain" or self.consistency):
            refuse("only plain training freezes layers", "leave it", "frozen", "method", "consistency")
        if not self.frozen and self.frozen_views != TrainConfig.__dataclass_fields__["frozen_views"].default:
            refuse("views of frozen layers", "set frozen, or leave them", "frozen", "frozen_views")
        if self.levels:
            check_names(self.levels)
            strange = sorted(set(self.level_weights) - set(self.levels))
            if strange or not all(weight >= 0 for weight in self.level_weights.values()):
                refuse("level_weights are numbers, 0 or more, of levels", "drop others", "level_weights", "levels")
            if self.teacher_forcing and self.method != "plain":
                refuse("teacher forcing is of plain training", "leave it", "teacher_forcing", "method")
            if self.taps != "all" and self.method != "pmal":
                refuse("taps are PMAL's", "leave them", "taps", "method")
            if not 0 <= self.back_off <= 1:
                refuse("back_off is a precision", "pass a value in [0, 1]", "back_off")
        else:
            plain = TrainConfig.__dataclass_fields__
            of_levels = ("hierarchy", "feed", "stop_gradient", "teacher_forcing", "head_dropout", "marginal_weight")
            used = [n for n in (*of_levels, "taps", "back_off") if getattr(self, n) != plain[n].default]
            if used or self.level_weights:
                refuse("this belongs to levels", "set levels, for example [make, class]", *used, "level_weights")
        balances = self.balancer != "none" or self.measure_every > 0
        if self.balancer == "none" and self.balancer_options:
            refuse("options without a balancer", "name one", "balancer", "balancer_options")
        if balances and self.method == "plain" and len(self.levels) < 2 and not self.consistency:
            refuse("there is one loss and nothing to balance", "set levels", "balancer", "measure_every", "levels")
        if self.balance_over == "levels" and not (balances and self.levels):
            refuse("levels to balance over", "set levels and balancer", "balance_over", "levels", "balancer")
        if self.balancer == "db_mtl" and self.method == "pmal" and self.balancer_options.get("beta") != 0:
            refuse("PMAL's depths have no common gradient to remember", "pass beta: 0", "balancer", "balancer_options")
        if self.unknown not in get_args(UnknownScore):
            refuse("no such unknown score", f"choose of {', '.join(get_args(UnknownScore))}", "unknown")
        several = self.levels or (self.method == "pmal" and self.keep == "heads")
        if self.unknown in OF_CLASSIFIER and several:
            refuse("this unknown score reads a plain classifier", "use knn", "unknown", "levels", "method", "keep")
        if self.sam_every > 1 and self.sam_rho == 0:
            refuse("sam_every without SAM", "set sam_rho, for example 0.05", "sam_every", "sam_rho")
        if self.method == "pmal" and self.mode == "fast" and self.noise == "none":
            refuse("PMAL without noise has nothing to restore", "set noise", "method", "noise")

    def with_(self, **changes: Any) -> TrainConfig:
        """A copy with other values; unknown names raise ConfigError."""
        unknown = sorted(set(changes) - set(asdict(self)))
        if unknown:
            raise ConfigError("no such setting", got=", ".join(unknown), do="see `vmmr train --help`")
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML or JSON."""
        return asdict(self)

    def write_yaml(self, path: Path) -> None:
        """The form that `vmmr train --config` reads."""
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")
