"""The training loop: every batch, the method's steps in order; every epoch, a look at the validation images.

Lightning Fabric gives device, precision and processes. The loop, the steps and the gradients' averaging are ours and
visible: one batch runs several partial forwards before a backward, which a wrapper around the network cannot follow.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from vmmr.balancing import Balance, balanced_backward
from vmmr.config import TrainConfig
from vmmr.data.samplers import EpochSampler
from vmmr.errors import TrainingError
from vmmr.evaluation.classify import accuracy, predict_logits
from vmmr.evaluation.hierarchy import level_scores
from vmmr.models.heads.hierarchy import split_levels
from vmmr.training.augment import crop_and_flip
from vmmr.training.balance import balancer, grouped
from vmmr.training.frozen import picked, predict_from_maps
from vmmr.training.log import RunLog
from vmmr.training.method import Batch, Method, Step, total
from vmmr.training.processes import average, fill_gradients, mean
from vmmr.training.sam import clear_gradients, sharpness_aware
from vmmr.training.samples import Samples
from vmmr.training.schedule import share_of_peak
from vmmr.training.state import latest_checkpoint, read_checkpoint, write_checkpoint

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_RENEWING_BATCHES = 100
_MAY_CHANGE = ("weights", "memory_gib", "checkpoint_minutes")  # between a run and its resumption

__all__ = ["Fitted", "build_optimizer", "fit"]


@dataclass(frozen=True)
class Fitted:
    """What a run ends with: the network state to keep, and how it got there.

    state: that of the epoch with the best validation accuracy (of the weight average where there is one);
    history: one dict an epoch; best: the epoch it was taken from; seconds: spent training, over all resumptions.
    """

    state: dict[str, Tensor]
    history: list[dict[str, float]]
    best: int
    seconds: float


def build_optimizer(method: Method, config: TrainConfig) -> Optimizer:
    """SGD or AdamW with a group for heads and one for trunk; AdamW spares vectors (norms, biases) the decay.

    Each group carries its `peak` learning rate, which the schedule scales.
    """
    heads = {id(p) for p in method.head_parameters()}
    sides: tuple[tuple[float, list[nn.Parameter]], ...] = (
        (config.lr, [p for p in method.network.parameters() if id(p) in heads]),
        (config.trunk_lr, [p for p in method.network.parameters() if id(p) not in heads]),
    )
    groups: list[dict[str, Any]] = []
    for peak, parameters in sides:
        if config.optimizer == "sgd":
            groups.append({"params": parameters, "peak": peak, "weight_decay": config.weight_decay})
            continue
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim <= 1]
        groups.append({"params": matrices, "peak": peak, "weight_decay": config.weight_decay})
        groups.append({"params": vectors, "peak": peak, "weight_decay": 0.0})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=config.lr)


def _require_finite(losses: dict[str, float], step: int) -> None:
    if not math.isfinite(sum(losses.values())):
        do = "lower lr or set clip_norm"
        raise TrainingError(f"the loss is no longer finite at step {step}", got=losses, do=do)


def _batches(
    samples: Samples, order: Iterator[np.ndarray], rank: int, world: int
) -> Iterator[tuple[Tensor, Batch, int]]:
    """(pixels or maps, labels by their name in the batch, global batch size) of this process's share of each training
    batch, decoded one batch ahead."""
    side = samples.train
    source = side.pixels if samples.maps is None else samples.maps[0]
    columns = {"label": side.labels, **{f"label_{level}": labels for level, labels in side.by_level.items()}}

    def fetch(indices: np.ndarray) -> tuple[Tensor, Batch, int]:
        own = indices[rank::world]
        labels = {name: torch.from_numpy(column[own]) for name, column in columns.items()}
        return source[own], labels, len(indices)

    with ThreadPoolExecutor(1) as pool:
        coming: deque[Future[tuple[Tensor, Batch, int]]] = deque()
        for indices in order:
            coming.append(pool.submit(fetch, indices))
            if len(coming) > 1:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


class _Run:
    """One run's moving parts: what a checkpoint holds."""

    def __init__(self, method: Method, samples: Samples, config: TrainConfig, fabric: Fabric) -> None:
        self.method, self.samples, self.config, self.fabric = method, samples, config, fabric
        self.network = method.network
        self.parameters = list(self.network.parameters())
        self.rule = balancer(config)
        self.balance: Balance = {}
        self.optimizer = build_optimizer(method, config)
        self.learned = [] if self.rule is None else list(self.rule.to(fabric.device).parameters())
        if self.learned:
            self.optimizer.add_param_group({"params": self.learned, "peak": config.lr, "weight_decay": 0.0})
        self.average: AveragedModel | None = None
        if config.ema:
            averaging = get_ema_multi_avg_fn(config.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.network, multi_avg_fn=averaging, use_buffers=True)
        # Views are drawn alike on every process and shared out; noise is drawn by each for its own images.
        self.views = torch.Generator().manual_seed(config.seed)
        self.noise = torch.Generator(fabric.device).manual_seed(config.seed * 1000 + fabric.global_rank)
        self.sampler = EpochSampler(
            len(samples.train),
            config.batch_size,
            seed=config.seed,
            labels=samples.train.labels if config.balanced else None,
            mode="balanced" if config.balanced else "shuffled",
        )
        self.epoch = self.batch = self.step = 0
        self.best = -1
        self.best_score = -math.inf
        self.best_state: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0

    @property
    def evaluated(self) -> nn.Module:
        return self.average.module if self.average is not None else self.network

    def state(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if self.fabric.device.type == "cuda" else []
        return {
            "config": self.config.to_dict() | {"backbone_options": str(self.config.backbone_options)},
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rule": self.rule.state_dict() if self.rule is not None else None,
            "average": self.average.state_dict() if self.average is not None else None,
            "views": self.views.get_state(),
            "noise": self.noise.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": cuda,
            "position": [self.epoch, self.batch, self.step],
            "best": [self.best, self.best_score],
            "best_state": self.best_state,
            "history": self.history,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        here = self.config.to_dict() | {"backbone_options": str(self.config.backbone_options)}
        changed = sorted(k for k in here if state["config"].get(k) != here[k] and k not in _MAY_CHANGE)
        if changed:
            raise TrainingError(
                "the checkpoint belongs to other settings",
                got=", ".join(f"{k}={state['config'].get(k)!r} there, {here[k]!r} here" for k in changed),
                do="resume with the same settings or train into another folder",
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.rule is not None:
            self.rule.load_state_dict(state["rule"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.views.set_state(state["views"])
        self.noise.set_state(state["noise"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self.epoch, self.batch, self.step = state["position"]
        self.best, self.best_score = state["best"]
        self.best_state, self.history, self.seconds = state["best_state"], state["history"], state["seconds"]
        if self.fabric.world_size > 1:
            # The checkpoint is the first process's: the others must not repeat its noise.
            self.noise.manual_seed((self.config.seed * 1000 + self.fabric.global_rank) * 1_000_003 + self.step)

    def set_rates(self, steps: int) -> None:
        config = self.config
        share = share_of_peak(
            config.schedule, epoch=self.epoch, epochs=config.epochs, step=self.step, steps=steps, warmup=config.warmup
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share

    def view(self, pixels: Tensor, labels: Batch, global_size: int) -> Batch:
        """Pixels or maps -> the batch that the method sees, on the device: images in [-1, 1], or a map of each."""
        fabric, config = self.fabric, self.config
        draws = torch.rand(global_size, 3, generator=self.views)[fabric.global_rank :: fabric.world_size]
        pixels = pixels.to(fabric.device)
        if self.samples.maps is None:
            cut = crop_and_flip(pixels, draws, config.size, config.size, padding=config.padding)
            image = self.samples.preprocess.normalise(cut)
        else:
            image = picked(pixels, draws[:, 0])
        if config.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return {"image": image, **{name: column.to(fabric.device) for name, column in labels.items()}}

    def update(self, step: Step, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step on prepared data; returns the losses before it."""
        config, fabric = self.config, self.fabric
        self.balance = {}

        def closure() -> dict[str, Tensor]:
            with fabric.autocast():
                terms = step.losses(batch)
            if self.rule is None:
                torch.autograd.backward(total(terms))
            else:
                self.descend(terms, step)
            if self.samples.levels is not None:
                fill_gradients(fabric, self.parameters)
            average(fabric, [p.grad for p in (*self.parameters, *self.learned) if p.grad is not None])
            return {name: term.detach() for name, term in terms.items()}

        terms = sharpness_aware(
            closure,
            self.parameters,
            rho=config.sam_rho if self.step % config.sam_every == 0 else 0.0,
            networks=(self.network,),
            dense=config.dense_zero_grads,
        )
        if config.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        self.optimizer.step()
        clear_gradients(self.parameters, dense=config.dense_zero_grads)
        return terms

    def renew_statistics(self) -> None:
        """BatchNorm statistics of the kept weights, anew: the mean over clean or noisy training batches."""
        network = self.evaluated
        network.load_state_dict(self.best_state)
        self.best_score = -math.inf  # what follows is kept

        def images() -> Iterator[Tensor]:
            order = islice(self.sampler.batches(self.epoch), _RENEWING_BATCHES)
            for pixels, labels, size in _batches(self.samples, order, self.fabric.global_rank, self.fabric.world_size):
                batch = self.view(pixels, labels, size)
                if self.config.precise_norm == "noisy":
                    batch = self.method.steps(self.epoch, self.step)[0].prepare(batch, self.noise)
                yield batch["noisy"] if "noisy" in batch else batch["image"]

        update_bn(images(), network)

    def descend(self, terms: dict[str, Tensor], step: Step) -> None:
        """Leave in `.grad` what the rule makes of the losses. The second pass of SAM takes the first one's weights."""
        assert self.rule is not None
        fabric, every = self.fabric, self.config.measure_every
        for parameter in self.learned:  # of the last step, or of SAM's first pass
            parameter.grad = None
        found = balanced_backward(
            grouped(terms, self.config),
            self.rule,
            step.shared,
            heads=self.method.head_parameters(),
            reduce=partial(mean, fabric) if fabric.world_size > 1 else None,
            weights=self.balance.get("weights"),
            measure=bool(every) and self.step % every == 0,
        )
        if not self.balance:
            self.balance = found

    def validate(self) -> dict[str, float]:
        """Look at the validation images with the weights that would be kept; remember them if they are the best."""
        network = self.evaluated
        # Parameters are equal on all processes; BatchNorm statistics are each process's own until here.
        for seen in {id(self.network): self.network, id(network): network}.values():
            average(self.fabric, [b for b in seen.buffers() if b.is_floating_point()])
        validation, device = self.samples.validation, self.fabric.device

        def answer(image: Tensor) -> Tensor:
            return self.method.answer(network, image)

        if self.samples.maps is None:
            logits = predict_logits(answer, network, validation.pixels, self.samples.preprocess, device=device)
        else:
            logits = predict_from_maps(answer, network, self.samples.maps[1], device=device)
        levels = self.samples.levels
        if levels is None:
            scores = {f"val_{name}": value for name, value in accuracy(logits, validation.labels).items()}
        else:
            found = level_scores(split_levels(logits, levels.widths), validation.by_level)
            scores = {f"val_{name}": found[levels.finest][name] for name in ("top1", "top5")}
            scores |= {f"val_{level}": next(iter(by_level.values())) for level, by_level in found.items()}
        if scores["val_top1"] > self.best_score:
            self.best, self.best_score = self.epoch, scores["val_top1"]
            self.best_state = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
        return scores


def fit(
    method: Method,
    samples: Samples,
    config: TrainConfig,
    fabric: Fabric,
    folder: Path,
    *,
    resume: bool = False,
    progress: bool = True,
) -> Fitted:
    """Train `method` and return the state with the best validation accuracy.

    folder: where checkpoints, log.csv and TensorBoard files go. resume: continue from the newest checkpoint there, if
    any; on the CPU the end is that of an uninterrupted run, bit for bit. Raises TrainingError when a loss is not
    finite, a batch does not fit the images, or a checkpoint belongs to other settings.
    """
    fabric.to_device(method.network)
    if config.channels_last:
        method.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = _Run(method, samples, config, fabric)
    per_epoch = len(run.sampler)
    if per_epoch == 0 or config.batch_size % fabric.world_size:
        raise TrainingError(
            "the batch does not fit",
            got=f"batch_size={config.batch_size}, {len(samples.train)} images, {fabric.world_size} processes",
            do="choose a batch of at most the images there are, divisible by the processes",
        )
    checkpoints = folder / "checkpoints"
    newest = latest_checkpoint(checkpoints) if resume else None
    if newest is not None:
        run.restore(read_checkpoint(newest))
    steps = per_epoch * config.epochs
    with RunLog(folder, steps=steps, start=run.step, active=fabric.is_global_zero, progress=progress) as log:
        saved = started = time.monotonic()

        def save() -> None:
            nonlocal saved, started
            run.seconds += time.monotonic() - started
            started = time.monotonic()
            if fabric.is_global_zero:
                write_checkpoint(checkpoints, run.step, run.state())
            fabric.barrier()
            saved = time.monotonic()

        while run.epoch < config.epochs:
            method.network.train()
            order = run.sampler.batches(run.epoch, start_step=run.batch)
            for pixels, labels, size in _batches(samples, order, fabric.global_rank, fabric.world_size):
                run.set_rates(steps)
                batch = method.begin(run.view(pixels, labels, size), run.epoch)
                terms: dict[str, Tensor] = {}
                balance: dict[str, Tensor] = {}
                for step in method.steps(run.epoch, run.step):
                    with torch.no_grad():
                        prepared = step.prepare(batch, run.noise)
                    terms |= run.update(step, prepared)
                    balance |= {
                        f"{kind}/{name}": value for kind, found in run.balance.items() for name, value in found.items()
                    }
                if run.average is not None:
                    run.average.update_parameters(method.network)
                run.step += 1
                run.batch += 1
                rate = run.optimizer.param_groups[0]["lr"]
                values = log.losses(run.step, run.epoch, terms, images=size, rate=rate, balance=balance)
                _require_finite(values or {}, run.step)
                if fabric.world_size == 1 and time.monotonic() - saved > 60 * config.checkpoint_minutes:
                    save()
            if run.rule is not None:
                run.rule.end_epoch()
            means = log.epoch_means()
            _require_finite(means, run.step)
            scores = run.validate()
            run.history.append({"epoch": run.epoch, "step": run.step, **means, **scores})
            log.scores(run.step, run.epoch, scores)
            run.epoch, run.batch = run.epoch + 1, 0
            save()
        if config.precise_norm != "none":
            run.renew_statistics()
            scores = run.validate()
            run.history.append({"epoch": run.epoch, "step": run.step, **scores})
            log.scores(run.step, run.epoch, scores)
    return Fitted(state=run.best_state, history=run.history, best=run.best, seconds=run.seconds)
