"""The constants a score was fitted to: named tensors of known shapes, checked wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Self, get_type_hints

import torch
from torch import Tensor

from vmmr.errors import BundleError, DataError

__all__ = ["Fitted", "Head", "Shape"]

_MOST = 2**28  # elements of one tensor: 1 GiB of float32


class Shape:
    """What a tensor of `Fitted` is, beside its type: `Annotated[Tensor, Shape("C", "D")]`.

    dims: a letter each, that means one size throughout. C: classes; D: features; M: images of a bank, for which the
    field `label` has the classes; P: prototypes, for which `prototype_label` has; others are the score's own. finite:
    whether infinity is refused.
    """

    def __init__(self, *dims: str, dtype: torch.dtype = torch.float32, finite: bool = True) -> None:
        self.dims, self.dtype, self.finite = dims, dtype, finite


@dataclass(frozen=True)
class Fitted:
    """The constants of a score; this one, without any, is that of scores that need none.

    Raises DataError where a tensor is not of its shape or type, or holds what is no number.

    >>> Fitted().tensors()
    {}
    """

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for name, shape in self._shapes().items():
            tensor, what = getattr(self, name), f"{name} of {type(self).__name__}"
            if not isinstance(tensor, Tensor) or tensor.dtype != shape.dtype or tensor.dim() != len(shape.dims):
                raise DataError(
                    f"{what} is not of its kind",
                    got=f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__,
                    do=f"pass {shape.dtype} [{', '.join(shape.dims)}]",
                )
            if tensor.numel() > _MOST or not tensor.numel():
                raise DataError(f"{what} is too large, or empty", got=list(tensor.shape))
            for dim, size in zip(shape.dims, tensor.shape, strict=True):
                if sizes.setdefault(dim, size) != size:
                    raise DataError(f"{what} does not fit the others", got=f"{dim} = {size}", do=f"pass {sizes[dim]}")
            if tensor.isnan().any() or (shape.finite and tensor.isinf().any()):
                raise DataError(f"{what} holds what is no finite number")

    @classmethod
    def _shapes(cls) -> dict[str, Shape]:
        hints = get_type_hints(cls, include_extras=True)
        return {item.name: hints[item.name].__metadata__[0] for item in fields(cls)}

    def tensors(self) -> dict[str, Tensor]:
        """The constants by name, contiguous: what `safetensors` writes."""
        return {name: getattr(self, name).contiguous() for name in self._shapes()}

    @property
    def width(self) -> int | None:
        """How many features they are for; None where that does not matter."""
        places = [(name, shape.dims.index("D")) for name, shape in self._shapes().items() if "D" in shape.dims]
        return next((int(getattr(self, name).shape[place]) for name, place in places), None)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], *, classes: int, width: int | None) -> Self:
        """What `tensors` gave, of a network with so many classes and features at its classifier; width None: any.

        The tensors may come from a stranger's file: names, types, shapes and values are checked, and BundleError says
        which does not fit.

        >>> Head.from_tensors({"weight": torch.eye(2), "bias": torch.zeros(2)}, classes=2, width=2).bias
        tensor([0., 0.])
        """
        shapes = cls._shapes()
        if set(tensors) != set(shapes):
            raise BundleError(
                f"{cls.__name__} has other tensors", got=sorted(set(tensors) ^ set(shapes))[:8], do=f"need {[*shapes]}"
            )
        try:
            found = cls(**tensors)
        except DataError as error:
            raise BundleError("the constants of an unknown score are malformed", got=error) from error
        for name, shape in shapes.items():
            for dim, size in zip(shape.dims, tensors[name].shape, strict=True):
                if {"C": classes, "D": width}.get(dim) not in (None, size):
                    raise BundleError(
                        f"{name} of {cls.__name__} is of another network",
                        got=f"{dim} = {size}",
                        do=f"need {classes} classes and {'as many' if width is None else width} features",
                    )
        return found

    def to(self, device: torch.device | str) -> Self:
        """The same constants on a device."""
        return type(self)(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def without(self, label: int) -> Self:
        """The constants of the same network had it never heard of one class: its rows are left out of all that goes by
        class, and its images and prototypes out of a bank. What was learned from its images in sums stays.

        >>> Head(torch.eye(2), torch.tensor([5.0, 7.0])).without(0)
        Head(weight=tensor([[0., 1.]]), bias=tensor([7.]))
        """
        kept = {}
        for name, shape in self._shapes().items():
            tensor = getattr(self, name)
            if shape.dims[:1] == ("C",):
                tensor = torch.cat([tensor[:label], tensor[label + 1 :]])
            elif shape.dims[:1] == ("M",):
                tensor = tensor[self.label != label]  # type: ignore[attr-defined]
            elif shape.dims[:1] == ("P",):
                tensor = tensor[self.prototype_label != label]  # type: ignore[attr-defined]
            kept[name] = tensor
        return type(self)(**kept)


@dataclass(frozen=True)
class Head(Fitted):
    """The classifier: logits = features @ weight.T + bias."""

    weight: Annotated[Tensor, Shape("C", "D")]
    bias: Annotated[Tensor, Shape("C")]
