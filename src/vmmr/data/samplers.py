"""Which images make up a batch: index arrays drawn from (seed, epoch) alone.

Nothing here has a state to save: the batches of epoch 7 are the same whether a run came from epoch 6 or was resumed
in its middle, and every process of a parallel run draws the same ones and takes its share. No Python runs row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmmr.errors import ConfigError

__all__ = ["EpochSampler", "balanced", "pk_batches", "shuffled"]


def shuffled(n: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """[n] every index once, in random order.

    >>> sorted(shuffled(5, seed=0, epoch=3).tolist())
    [0, 1, 2, 3, 4]
    """
    return _generator(seed, epoch).permutation(n).astype(np.int64, copy=False)


def balanced(labels: ArrayLike, *, seed: int, epoch: int, size: int | None = None) -> NDArray[np.int64]:
    """[size] indices with replacement: every class as often as any other (within one), any of its images alike.

    labels: [N], any whole numbers. size: N unless given.

    >>> labels = np.array([0, 0, 0, 0, 0, 1])
    >>> np.bincount(labels[balanced(labels, seed=0, epoch=0)]).tolist()
    [3, 3]
    """
    generator = _generator(seed, epoch)
    order, starts, counts = _by_class(labels)
    size = len(order) if size is None else size
    # The classes that get one more are drawn too, or low labels would always be favoured.
    rounds = np.tile(np.arange(len(counts)), size // len(counts))
    extra = generator.permutation(len(counts))[: size % len(counts)]
    classes = generator.permutation(np.concatenate([rounds, extra]))
    drawn: NDArray[np.int64] = order[starts[classes] + generator.integers(0, counts[classes])]
    return drawn


# P and K are the names of the trade: Hermans et al., In Defense of the Triplet Loss, 2017.
def pk_batches(labels: ArrayLike, P: int, K: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """[N // (P K) or 1, P K] batches of P different classes with K images each, images of a class side by side.

    A class goes through its images in random order before it repeats one, so that K images of a batch differ wherever
    the class has as many. Raises ConfigError where there are fewer than P classes.

    >>> pk_batches([0, 0, 1, 1, 2, 2], P=2, K=2, seed=0, epoch=0).shape
    (1, 4)
    """
    generator = _generator(seed, epoch)
    order, starts, counts = _by_class(labels, generator)
    if not (1 <= P <= len(counts) and K >= 1):
        raise ConfigError("P must lie in 1..number of classes and K be 1 or more", got=f"P={P}, K={K}, {len(counts)}")
    batches = max(len(order) // (P * K), 1)
    per_round = len(counts) // P
    rounds = -(-batches // per_round)
    # Every round is a permutation of the classes cut into batches: no class twice in a batch, all equally often.
    classes = generator.permuted(np.tile(np.arange(len(counts)), (rounds, 1)), axis=1)[:, : per_round * P]
    visit = np.repeat(np.arange(rounds), per_round * P)[: batches * P, None]
    chosen = classes.reshape(-1)[: batches * P, None]
    place = (visit * K + np.arange(K)) % counts[chosen]
    drawn: NDArray[np.int64] = order[starts[chosen] + place].reshape(batches, P * K)
    return drawn


@dataclass(frozen=True)
class EpochSampler:
    """Batches of indices, epoch by epoch, shared out over processes.

    n:           how many images there are
    batch_size:  of all processes together
    rank, world: this process takes `batch[rank::world]` of every batch
    drop_last:   leave out a last batch that is not full; needed where world > 1
    labels:      [n], for mode "balanced", which draws with replacement; "shuffled" shows every image once

    >>> sampler = EpochSampler(10, 4, seed=0)
    >>> len(sampler), [batch.shape for batch in sampler.batches(epoch=0)]
    (2, [(4,), (4,)])
    """

    n: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1
    drop_last: bool = True
    labels: NDArray[np.int64] | None = None
    mode: Literal["shuffled", "balanced"] = "shuffled"

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or self.batch_size < 1 or self.batch_size % self.world:
            raise ConfigError(
                "batch_size must be a multiple of world, and rank below world",
                got=f"batch_size={self.batch_size}, rank={self.rank}, world={self.world}",
            )
        if self.world > 1 and not self.drop_last:
            raise ConfigError("world > 1 needs drop_last=True", do="processes with unequal batches wait for ever")
        if self.mode not in ("shuffled", "balanced"):
            raise ConfigError("mode is 'shuffled' or 'balanced'", got=repr(self.mode))
        if (self.mode == "balanced") != (self.labels is not None):
            raise ConfigError("mode 'balanced' needs labels, and only that mode", got=f"mode={self.mode!r}")
        if self.labels is not None and len(self.labels) != self.n:
            raise ConfigError("labels need one entry an image", got=len(self.labels), do=f"give {self.n}")
        if len(self) == 0:
            raise ConfigError("not one full batch", got=f"n={self.n}, batch_size={self.batch_size}")

    def __len__(self) -> int:
        return self.n // self.batch_size if self.drop_last else -(-self.n // self.batch_size)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[NDArray[np.int64]]:
        """The batches of an epoch for this process, from batch `start_step` on."""
        if self.labels is None:
            order = shuffled(self.n, seed=self.seed, epoch=epoch)
        else:
            order = balanced(self.labels, seed=self.seed, epoch=epoch)
        for step in range(start_step, len(self)):
            yield order[step * self.batch_size : (step + 1) * self.batch_size][self.rank :: self.world]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    # A sequence, not a sum: seed 1 of epoch 0 must not be seed 0 of epoch 1.
    return np.random.default_rng([seed, epoch])


def _by_class(
    labels: ArrayLike, generator: np.random.Generator | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Indices sorted by class (shuffled inside one, given a generator), where each class starts, how many it has."""
    values = np.asarray(labels)
    if values.ndim != 1 or not len(values):
        raise ConfigError("labels must be a list of one label or more", got=values.shape)
    if generator is None:
        order = np.argsort(values, kind="stable")
    else:
        mixed = generator.permutation(len(values))
        order = mixed[np.argsort(values[mixed], kind="stable")]
    _, starts, counts = np.unique(values[order], return_index=True, return_counts=True)
    return order.astype(np.int64), starts.astype(np.int64), counts.astype(np.int64)
