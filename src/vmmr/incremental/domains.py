"""Banks for capture domains: the same classes at night, in fog, through another camera.

A domain has a bank of BatchNorms beside the old ones, and neither a head nor a pass of its own. With s the mean and the
logarithm of the standard deviation of each channel before the first BatchNorm, [2C], which no bank has touched,

    distance_d = |W_d (s - m_d)|^2 + level_d,   W_d^T W_d = S_d^-1,   level_d = log det S_d + offset_d

where m_d and S_d are mean and shrunk covariance of s over images of the domain. An image goes through the network once,
by the bank of the nearest. Nothing changes but the new bank and these numbers.

    night = adapt(backbone, items)                     # a bank, from images without labels
    tune(backbone, night, answer, items, labels, ...)  # and, where there are labels, its gamma and beta
    domain_banks(backbone).place(...)                  # which bank answers: `gaussian` of `signatures`

Sources: statistics of the new images in the place of the old ones, Li et al. 2016 (AdaBN, arXiv 1603.04779); domains
told apart by the statistics of BatchNorm layers, Seo et al. 2020 (arXiv 1907.04275). One pass, chosen by Gaussians
before the first layer, is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmmr.discriminants import oas_shrinkage
from vmmr.errors import ConfigError, DataError
from vmmr.incremental.banks import NAMES, BankedNorm, Choice, bank_norms
from vmmr.incremental.gallery import fit_offset
from vmmr.incremental.task_norm import Plan, Progress, View, as_images, descend, shuffled_batches
from vmmr.models.backbone import Backbone

__all__ = ["PLACE", "DomainBanks", "adapt", "domain_banks", "fit_level", "gaussian", "signature", "signatures", "tune"]

PLACE = ("centre", "whiten", "level")
"""What a domain is told by."""

_BATCH = 64


def signature(x: Tensor) -> Tensor:
    """Maps [B, C, H, W] -> mean and log standard deviation of each channel, [B, 2C].

    >>> signature(torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[2., 0.]])
    """
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    return torch.cat([mean, 0.5 * (variance + 1e-8).log()], dim=1)


def gaussian(signatures: Tensor) -> dict[str, Tensor]:
    """Signatures [N, S] of a domain -> centre [S], whiten [S, S] and level, a scalar: |whiten (s - centre)|^2 + level
    is -2 log of their Gaussian density, less a constant. Correlations are shrunk (OAS). DataError for fewer than two
    images, or for images that are all alike."""
    if len(signatures) < 2:
        raise DataError("a domain is told by two images or more", got=len(signatures))
    values = signatures.double()
    centre = values.mean(dim=0)
    spread = values.var(dim=0)
    if not spread.max() > 1e-12:
        raise DataError("the images of a domain are all alike", got=f"{len(values)} images", do="add different ones")
    spread = (spread + 1e-4 * spread.mean()).sqrt()
    apart = (values - centre) / spread
    correlation = apart.T @ apart / (len(values) - 1)
    part = oas_shrinkage(correlation, len(values) - 1)
    eye = torch.eye(len(correlation), dtype=torch.float64)
    factor = torch.linalg.cholesky((1 - part) * correlation + (part + 1e-6) * eye)
    whiten = torch.linalg.solve_triangular(factor, eye, upper=False) / spread
    level = 2 * (factor.diagonal().log() + spread.log()).sum()
    return {"centre": centre.float(), "whiten": whiten.float(), "level": level.float()}


class DomainBanks(nn.Module):
    """Stands where the first BatchNorm of a backbone stood: chooses the bank of each image, and applies it.

    norms: all layers by name, this one's first. centre [T, S], whiten [T, S, S] and level [T] tell the domains apart;
    before they are placed, all images are of domain 0.
    """

    centre: Tensor
    whiten: Tensor
    level: Tensor

    def __init__(self, norms: dict[str, BankedNorm], choice: Choice) -> None:
        super().__init__()
        self.first = next(iter(norms.values()))
        self.norms = norms  # a plain dict: modules of the network, not of this one
        self._choice = choice
        self._told: int | None = None
        size = 2 * self.first.origin.num_features
        for name, shape in (("centre", (0, size)), ("whiten", (0, size, size)), ("level", (0,))):
            self.register_buffer(name, self.first.origin.weight.detach().new_zeros(shape))
        self.add()

    def __len__(self) -> int:
        """How many domains there are."""
        return len(self.first.banks)

    def distances(self, signatures: Tensor) -> Tensor:
        """[B, S] -> [B, T], of each domain."""
        # One after the other: of all at once, [B, T, S], OpenVINO gets the sum wrong.
        found = [
            functional.linear(signatures - centre, whiten).square().sum(dim=1) + level
            for centre, whiten, level in zip(self.centre, self.whiten, self.level, strict=True)
        ]
        return torch.stack(found, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same, normalised."""
        if self._told is not None:
            self._choice.bank = self._told
        elif not len(self.level):
            self._choice.bank = 0
        else:
            self._choice.bank = self.distances(signature(x)).argmin(dim=1)
        found: Tensor = self.first(x)
        return found

    def add(self) -> int:
        """A domain whose bank is that of domain 0; its number."""
        for norm in self.norms.values():
            norm.banks.append(deepcopy(norm.banks[0] if len(norm.banks) else norm.origin).requires_grad_(False).eval())
        return len(self) - 1

    @contextmanager
    def told(self, domain: int) -> Iterator[None]:
        """Within, every image is of this domain."""
        self._told = range(len(self))[domain]
        try:
            yield
        finally:
            self._told = None

    @contextmanager
    def learning(self, domain: int) -> Iterator[list[nn.BatchNorm2d]]:
        """Within, every image is of this domain, and its bank, a layer each, is in training mode."""
        own = [bank for norm in self.norms.values() if isinstance(bank := norm.banks[domain], nn.BatchNorm2d)]
        try:
            with self.told(domain):
                for bank in own:
                    bank.train()
                yield own
        finally:
            for bank in own:
                bank.eval().requires_grad_(False)

    def tensors(self, domain: int) -> dict[str, Tensor]:
        """Copies of the bank of a domain, `banks.<layer>.weight`, `bias`, `running_mean` and `running_var`."""
        return {
            f"banks.{layer}.{name}": getattr(norm.banks[domain], name).detach().clone()
            for layer, norm in self.norms.items()
            for name in NAMES
        }

    def load(self, domain: int, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        for layer, norm in self.norms.items():
            for name in NAMES:
                getattr(norm.banks[domain], name).detach().copy_(tensors[f"banks.{layer}.{name}"])

    def place(self, told: Mapping[str, Tensor]) -> None:
        """What the last domains are told by, those that have not been told apart yet: centre [D, S], whiten [D, S, S]
        and level [D]. ConfigError where they are of other shapes, or not finite."""
        missing = len(self) - len(self.level)
        for name in PLACE:
            before, after = getattr(self, name), told[name]
            if after.shape != (missing, *before.shape[1:]) or not after.isfinite().all():
                raise ConfigError(
                    "domains are told apart by finite numbers of each",
                    got=f"{name} {list(after.shape)}",
                    do=f"need {[missing, *before.shape[1:]]}",
                )
        for name in PLACE:
            setattr(self, name, torch.cat([getattr(self, name), told[name].to(getattr(self, name))]))

    def lead(self, signatures: Tensor) -> Tensor:
        """By how much each image is nearer to the last domain than to any other: [N, S] -> [N]."""
        found = self.distances(signatures)
        return found[:, :-1].amin(dim=1) - found[:, -1]


def domain_banks(backbone: Backbone) -> DomainBanks:
    """The banks of a backbone; where it has none, its BatchNorms become those of domain 0, in place, and it is frozen.

    ConfigError as `bank_norms`, and where there are banks of tasks.
    """
    for module in backbone.model.modules():
        if isinstance(module, DomainBanks):
            return module
        if isinstance(module, BankedNorm):
            raise ConfigError("banks of tasks have no domains", do="learn domains before tasks come")
    choice = Choice()
    norms = bank_norms(backbone.model, choice)
    banks = DomainBanks(norms, choice)
    parent, _, own = next(iter(norms)).rpartition(".")
    setattr(backbone.model.get_submodule(parent), own, banks)
    backbone.requires_grad_(False)
    return banks


@torch.no_grad()
def signatures(backbone: Backbone, items: Tensor, view: View = as_images) -> Tensor:
    """The `signature` of each item, [N, S]; no bank has a part in it."""
    banks = domain_banks(backbone)
    found: list[Tensor] = []
    hook = banks.register_forward_pre_hook(lambda _, given: found.append(signature(given[0])))
    try:
        with banks.told(0):
            for part in torch.split(items, _BATCH):
                _features(backbone, view(part, None))
    finally:
        hook.remove()
    return torch.cat(found)


@torch.no_grad()
def adapt(
    backbone: Backbone, items: Tensor, view: View = as_images, *, generator: torch.Generator | None = None
) -> int:
    """A new domain with the statistics of these images, whose labels nobody needs; its number.

    Gamma and beta are those of domain 0. One pass in batches as even as can be, drawn from the generator: means over
    them of the mean and variance that each layer sees. DataError for fewer than two images.
    """
    if len(items) < 2:
        raise DataError("a bank takes two images or more", got=len(items))
    banks = domain_banks(backbone)
    domain = banks.add()
    with banks.learning(domain) as own:
        momenta = [bank.momentum for bank in own]
        for bank in own:
            bank.reset_running_stats()
            bank.momentum = None  # a plain mean
        for rows in shuffled_batches(len(items), _BATCH, generator):
            _features(backbone, view(items[rows], None))
        for bank, momentum in zip(own, momenta, strict=True):
            bank.momentum = momentum
    return domain


def tune(
    backbone: Backbone,
    domain: int,
    answer: Callable[[Tensor], Tensor],
    items: Tensor,
    labels: Tensor,
    view: View = as_images,
    *,
    plan: Plan,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> None:
    """Learn gamma and beta of a domain from images with labels, int64 [N]; all else stays, heads too.

    answer: images [B, 3, H, W] -> logits [B, C], of the network on this backbone. Cross-entropy, by SGD with momentum
    0.9. Where BatchNorm sees training batches its running statistics go with them.
    """
    with domain_banks(backbone).learning(domain) as own:
        parameters = [parameter.requires_grad_(True) for bank in own for parameter in bank.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=plan.lr, momentum=0.9, weight_decay=plan.weight_decay)

        def loss(rows: Tensor) -> Tensor:
            return functional.cross_entropy(answer(view(items[rows], generator)), labels[rows])

        descend("bank", plan, optimizer, len(labels), loss, generator, progress)
        for parameter in parameters:
            parameter.grad = None


def fit_level(lead: Tensor, own: Tensor, bound: float) -> tuple[float, float]:
    """What is added to the level of a new domain, and the share of old images that it promises to take at most.

    lead [N]: by how much each old image is nearer to the new domain than to any other, own [M] the same of images of
    the domain; none may have been fitted on. Halfway between where `bound` of the old images would leave and where
    `bound` of the new ones would stay, and never below the first (`gallery.fit_offset`, on average).

    >>> fit_level(torch.arange(-99.0, 0.0), torch.arange(10.0, 109.0), 0.05)
    (4.5, 0.05)
    """
    least, promised = fit_offset(lead, bound, None)
    most, _ = fit_offset(-own, bound, None)
    return (least + max(least, -most)) / 2, promised


def _features(backbone: Backbone, image: Tensor) -> None:
    backbone.model.forward_features(backbone.own_space(image))
