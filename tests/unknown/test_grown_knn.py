"""A bank that new classes join."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from vmmr.unknown.knn import KNNFitted, grown_knn, knn
from vmmr.unknown.knn_pca import ReducedKNNFitted, grown_knn_pca, knn_pca


@pytest.mark.parametrize("pull", [0.0, 0.5, 1.0])
def test_what_was_near_stays_as_near_and_new_classes_come_nearer(pull: float) -> None:
    random = torch.Generator().manual_seed(0)
    bank = functional.normalize(torch.randn(30, 8, generator=random), dim=1)
    fitted = KNNFitted(bank, torch.arange(30) % 3)
    new = 3 * torch.randn(7, 8, generator=random)
    labels = torch.tensor([3, 3, 3, 4, 4, 4, 4])
    grown = grown_knn(fitted, new, labels, pull)
    assert torch.equal(grown.bank[:30], bank)
    assert torch.bincount(grown.label)[3:].tolist() == [12, 12]  # 3 rows four times, 4 rows three times
    for label in (3, 4):
        unit = functional.normalize(new[labels == label], dim=1)
        mean = functional.normalize(unit.mean(dim=0), dim=0)
        for row, found in zip(unit, grown.bank[grown.label == label], strict=False):
            torch.testing.assert_close(found, functional.normalize((1 - pull) * row + pull * mean, dim=0))
    shown = torch.randn(20, 8, generator=random)
    assert (knn(shown, shown, grown) <= knn(shown, shown, fitted) + 1e-6).all()
    assert (knn(new, new, grown) < knn(new, new, fitted)).all()


def test_a_bank_with_a_basis_grows_and_keeps_the_basis() -> None:
    random = torch.Generator().manual_seed(0)
    bank = functional.normalize(torch.randn(30, 8, generator=random), dim=1)
    labels, basis = torch.arange(30) % 3, torch.eye(8)[:, :4].contiguous()
    fitted = ReducedKNNFitted(bank, labels, basis, functional.normalize(bank @ basis, dim=1), labels)
    new = torch.randn(5, 8, generator=random)
    inside = new @ fitted.basis @ fitted.basis.T
    grown = grown_knn_pca(fitted, new, torch.full((5,), 3), 0.0)
    assert torch.equal(grown.basis, fitted.basis)
    assert torch.equal(grown.prototype[:30], fitted.prototype)
    assert grown.prototype_label[30:].tolist() == [3] * 5  # five images are their own centres, repeated or not
    assert (knn_pca(inside, inside, fitted) > 0.1).all()
    torch.testing.assert_close(knn_pca(inside, inside, grown), torch.zeros(5), rtol=0, atol=2e-3)
    assert (knn_pca(new, new, grown) <= knn_pca(new, new, fitted) + 1e-6).all()
    mean = grown_knn_pca(fitted, new, torch.full((5,), 3), 1.0)
    middle = functional.normalize(functional.normalize(new, dim=1).mean(dim=0) @ basis, dim=0)
    torch.testing.assert_close(mean.prototype[30:], middle.expand(len(mean.prototype) - 30, 4), rtol=0, atol=1e-5)
