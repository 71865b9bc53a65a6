"""Every score against its formula in numpy, one image at a time; and what must leave it unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from vmmr.errors import ConfigError
from vmmr.unknown import SCORES, Fitted, gather
from vmmr.unknown.ash import ash, highest
from vmmr.unknown.dice import fit_dice
from vmmr.unknown.discriminant_max_logit import discriminant_max_logit, fit_discriminant_max_logit
from vmmr.unknown.energy import energy
from vmmr.unknown.gen import gen
from vmmr.unknown.knn import fit_knn, knn
from vmmr.unknown.knn_pca import fit_knn_pca, knn_pca
from vmmr.unknown.msp import msp
from vmmr.unknown.nnguide import fit_nnguide, nnguide
from vmmr.unknown.react import ReActFitted, fit_react, react
from vmmr.unknown.scale import scale
from vmmr.unknown.vim import fit_vim, vim

Row = NDArray[np.float64]
Naive = Callable[[Any, Row, Row], float]


def lse(values: Row) -> float:
    most = max(values)  # ASH's logits are too large for exp
    return float(most + np.log(sum(np.exp(v - most) for v in values)))


def softmax(values: Row) -> Row:
    return np.exp(values) / np.exp(values).sum()


def arrays(world: Any) -> tuple[Row, NDArray[np.int64], Row, Row]:
    """Training features and labels, weight and bias."""
    parts = (world.features, world.labels, world.weight, world.bias)
    x, y, w, b = (part.double().numpy() for part in parts)
    return x, y.astype(np.int64), w, b


def naive_react(world: Any, f: Row, logits: Row) -> float:
    x, _, w, b = arrays(world)
    clip = np.percentile(x, 90)
    return -lse(w @ np.array([min(v, clip) for v in f]) + b)


def naive_dice(world: Any, f: Row, logits: Row) -> float:
    x, _, w, b = arrays(world)
    mean = x.mean(axis=0)
    contribution = np.array([[w[c, k] * mean[k] for k in range(w.shape[1])] for c in range(len(w))])
    bound = np.percentile(contribution, 90)
    out = [b[c] + sum(w[c, k] * f[k] for k in range(len(f)) if contribution[c, k] > bound) for c in range(len(w))]
    return -lse(np.array(out))


def shaped(f: Row, p: float) -> tuple[Row, float]:
    kept = len(f) - round(len(f) * p / 100)
    order = np.argsort(-f)[:kept]
    pruned = np.zeros_like(f)
    pruned[order] = f[order]
    return pruned, f.sum() / pruned.sum()


def naive_ash(world: Any, f: Row, logits: Row) -> float:
    _, _, w, b = arrays(world)
    pruned, ratio = shaped(f, 90)
    return -lse(w @ (pruned * np.exp(ratio)) + b)


def naive_scale(world: Any, f: Row, logits: Row) -> float:
    _, _, w, b = arrays(world)
    return -lse(w @ (f * np.exp(shaped(f, 85)[1])) + b)


def naive_vim(world: Any, f: Row, logits: Row) -> float:
    x, _, w, b = arrays(world)
    origin = -np.linalg.pinv(w) @ b
    covariance = (x - origin).T @ (x - origin) / len(x)
    values, vectors = np.linalg.eigh(covariance)
    null = vectors[:, np.argsort(-values)[x.shape[1] // 2 :]]
    alpha = (x @ w.T + b).max(axis=1).mean() / np.linalg.norm((x - origin) @ null, axis=1).mean()
    return float(alpha * np.linalg.norm((f - origin) @ null) - lse(logits))


def naive_knn(world: Any, f: Row, logits: Row) -> float:
    x = arrays(world)[0]
    distances = [np.linalg.norm(f / np.linalg.norm(f) - row / np.linalg.norm(row)) for row in x]
    return float(sorted(distances)[9])


def naive_reduced(world: Any, dimension: int = 128) -> tuple[Any, Any]:
    """The images of the bank by direction, in their strongest directions, and their classes."""
    x, y, _, _ = arrays(world)
    unit = np.array([row / np.linalg.norm(row) for row in x])
    basis = np.linalg.svd(unit)[2][:dimension]
    return np.array([row / np.linalg.norm(row) for row in unit @ basis.T @ basis]), y


def naive_knn_pca(world: Any, f: Row, logits: Row) -> float:
    """To prototypes that are given; `test_prototypes...` are about those."""
    fitted = fit_knn_pca(world.statistics)
    rows = fitted.prototype.double().numpy() @ fitted.basis.double().numpy().T
    return float(min(np.linalg.norm(f / np.linalg.norm(f) - row / np.linalg.norm(row)) for row in rows))


def naive_nnguide(world: Any, f: Row, logits: Row) -> float:
    x, _, w, b = arrays(world)
    guides = [row / np.linalg.norm(row) * lse(w @ row + b) @ (f / np.linalg.norm(f)) for row in x]
    return float(-np.mean(sorted(guides)[-10:]) * lse(logits))


def naive_mahalanobis(world: Any, f: Row, logits: Row) -> float:
    x, y, _, _ = arrays(world)
    mean = np.stack([x[y == c].mean(axis=0) for c in range(y.max() + 1)])
    precision = np.linalg.inv(sum(np.outer(r, r) for r in x - mean[y]) / len(x))
    return float(min((f - m) @ precision @ (f - m) for m in mean))


def naive_relative(world: Any, f: Row, logits: Row) -> float:
    x = arrays(world)[0]
    away = f - x.mean(axis=0)
    return naive_mahalanobis(world, f, logits) - float(away @ np.linalg.inv(np.cov(x.T, ddof=0)) @ away)


def naive_himplos(p: float, clip: float | None, smooth: bool, end: Callable[[Row], float]) -> Naive:
    def score(world: Any, f: Row, logits: Row) -> float:
        x, y, w, b = arrays(world)
        c = int(np.argmax(logits))
        prototype = x[y == c].mean(axis=0)
        bound = np.percentile(w[c], p)
        most = np.inf if clip is None else np.percentile(x, clip)
        g = np.array([min(v if w[c, k] >= bound else 0.0, most) for k, v in enumerate(f)])
        s = f @ prototype / np.linalg.norm(f) / np.linalg.norm(prototype) if smooth else 1.0
        return end(s * (w @ g + b))

    return score


def naive_discriminant(world: Any, f: Row, logits: Row) -> float:
    """Shrunk by OAS, with an inverse, and as loud as half of the logits."""
    x, y, w, b = arrays(world)
    unit = np.stack([row / np.linalg.norm(row) for row in x])
    mean = np.stack([unit[y == c].mean(axis=0) for c in range(y.max() + 1)])
    within, width = sum(np.outer(r, r) for r in unit - mean[y]) / len(x), x.shape[1]
    trace, square, n = np.trace(within), (within**2).sum(), len(x) - len(mean)
    rho = ((1 - 2 / width) * square + trace**2) / ((n + 1 - 2 / width) * (square - trace**2 / width))
    rho = min(1.0, rho)
    precision = np.linalg.inv((1 - rho) * within + (rho + 1e-6) * trace / width * np.eye(width))

    def told(row: Row) -> Row:
        found = np.array([row @ precision @ m - m @ precision @ m / 2 for m in mean])
        return found - found.mean()

    ratio = np.std([max(w @ row + b) for row in x]) / np.std([max(told(row)) for row in unit])
    return float(-max(logits + ratio / 2 * told(f / np.linalg.norm(f))))


NAIVE: dict[str, Naive] = {
    "ash": naive_ash,
    "dice": naive_dice,
    "discriminant_max_logit": naive_discriminant,
    "energy": lambda world, f, logits: -lse(logits),
    "gen": lambda world, f, logits: float(sum((q * (1 - q)) ** 0.1 for q in softmax(logits))),
    "guided_max_logit": lambda world, f, z: -float(z.max()) * max(0, 1 - naive_knn_pca(world, f, z) ** 2 / 2),
    "himplos": naive_himplos(30, 90, True, lambda z: -lse(z)),
    "himplos_mask": naive_himplos(30, 90, False, lambda z: -lse(z)),
    "himplos_max_logit": naive_himplos(30, 90, True, lambda z: -float(z.max())),
    "himplos_msp": naive_himplos(30, 90, True, lambda z: 1 - float(softmax(z).max())),
    "himplos_smooth": naive_himplos(0, None, True, lambda z: -lse(z)),
    "himplos_unclipped": naive_himplos(30, None, True, lambda z: -lse(z)),
    "knn": naive_knn,
    "knn_pca": naive_knn_pca,
    "mahalanobis": naive_mahalanobis,
    "max_logit": lambda world, f, logits: -float(logits.max()),
    "msp": lambda world, f, logits: 1 - float(softmax(logits).max()),
    "nnguide": naive_nnguide,
    "react": naive_react,
    "relative_mahalanobis": naive_relative,
    "scale": naive_scale,
    "vim": naive_vim,
}


def test_every_score_is_recomputed_here() -> None:
    assert NAIVE.keys() == SCORES.keys()


@pytest.mark.parametrize("name", SCORES)
def test_a_score_is_its_formula(name: str, world: Any) -> None:
    score, fit, kind = SCORES[name]
    fitted = fit(world.statistics)
    assert type(fitted) is kind
    found = score(world.shown, world.logits, fitted)
    logits = world.logits.double().numpy()
    expected = [NAIVE[name](world, f, z) for f, z in zip(world.shown.double().numpy(), logits, strict=True)]
    assert found.shape == (len(world.shown),)
    # Images that are in the bank are at distance 0 from themselves, as far as float32 can tell.
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=1e-3 if "knn" in name else 2e-5)


@pytest.mark.parametrize("name", SCORES)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_neither_batch_nor_order_change_a_score(name: str, world: Any, seed: int) -> None:
    score, fit, _ = SCORES[name]
    fitted = fit(world.statistics)
    whole = score(world.shown, world.logits, fitted)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    parts = [score(world.shown[rows], world.logits[rows], fitted) for rows in order.split(1 + seed % 7)]
    torch.testing.assert_close(torch.cat(parts), whole[order], rtol=1e-4, atol=1e-3 if "knn" in name else 1e-5)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=8), st.floats(-50, 50))
def test_what_adding_a_number_to_all_logits_does(values: list[float], number: float) -> None:
    logits, nothing = torch.tensor([values], dtype=torch.float64), torch.zeros(1, 1)
    moved = logits + number
    for name in ("msp", "gen"):
        score = SCORES[name].score
        torch.testing.assert_close(score(nothing, moved, Fitted()), score(nothing, logits, Fitted()))
    for name in ("max_logit", "energy"):
        score = SCORES[name].score
        torch.testing.assert_close(score(nothing, moved, Fitted()), score(nothing, logits, Fitted()) - number)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=8))
def test_scores_of_logits_lie_in_their_ranges(values: list[float]) -> None:
    logits, nothing = torch.tensor([values], dtype=torch.float64), torch.zeros(1, 1)
    count = len(values)
    assert 0 <= msp(nothing, logits, Fitted()).item() <= 1 - 1 / count + 1e-9
    low, high = -max(values) - np.log(count), -max(values)
    assert low - 1e-9 <= energy(nothing, logits, Fitted()).item() <= high + 1e-9
    flat = gen(nothing, torch.zeros(1, count, dtype=torch.float64), Fitted()).item()
    assert 0 <= gen(nothing, logits, Fitted()).item() <= flat + 1e-9


def test_sure_answers_still_rank_behind_surer_ones() -> None:
    """In float32, 1 - p would be 0 for both."""
    logits = torch.tensor([[20.0, 0.0], [25.0, 0.0]])
    found = msp(torch.zeros(2, 1), logits, Fitted())
    assert found[0] > found[1] > 0
    np.testing.assert_allclose(found.numpy(), [np.exp(-20), np.exp(-25)], rtol=1e-5)
    ranked = gen(torch.zeros(2, 1), logits, Fitted())
    assert ranked[0] > ranked[1]


def test_gen_counts_the_likeliest_classes_alone() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, -1.0]])
    p = logits[0].softmax(dim=0)[:2]
    found = gen(torch.zeros(1, 1), logits, Fitted(), classes=2).item()
    assert found == pytest.approx(((p * (1 - p)) ** 0.1).sum().item(), rel=1e-5)


def test_cut_nowhere_and_kept_everywhere_is_energy(world: Any) -> None:
    plain = energy(world.shown, world.logits, Fitted())
    endless = ReActFitted(world.weight, world.bias, torch.tensor(torch.inf))
    assert torch.equal(react(world.shown, world.logits, endless), plain)
    whole = fit_dice(world.statistics, percentile=0)  # strictly above the lowest: all but that one
    assert int((whole.weight != world.weight).sum()) == 1
    assert fit_react(world.statistics, 100).clip.item() == world.features.max().item()


def test_ash_and_scale_that_keep_all_multiply_by_e(world: Any) -> None:
    head = SCORES["ash"].fit(world.statistics)
    grown = torch.nn.functional.linear(world.shown * np.e, world.weight, world.bias)
    expected = energy(world.shown, grown, Fitted())
    for score in (ash, scale):
        torch.testing.assert_close(score(world.shown, world.logits, head, percentile=0), expected)


def test_shaping_takes_features_below_0_and_images_without_any() -> None:
    features = torch.tensor([[-1.0, 2.0, 4.0, -3.0], [0.0, 0.0, 0.0, 0.0]])
    kept, ratio = highest(features, 75)
    assert kept.tolist() == [[0, 0, 4, 0], [0, 0, 0, 0]]
    assert ratio.tolist() == [1.5, 1.0]
    assert highest(features, 100)[0].tolist()[0] == [0, 0, 4, 0]  # one feature is kept at least


def test_vim_sees_what_leaves_the_space_of_the_known() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.cat([torch.rand(90, 3, generator=random), torch.zeros(90, 1)], dim=1)
    weight = torch.cat([torch.eye(3), torch.zeros(3, 1)], dim=1)
    found = fit_vim(gather([(features, torch.arange(90) % 3, torch.arange(90))], weight, torch.zeros(3)), dimension=3)
    assert found.null.abs().flatten().tolist() == pytest.approx([0, 0, 0, 1], abs=1e-6)
    inside, outside = features[:1], features[:1] + torch.tensor([0.0, 0, 0, 2])
    logits = inside @ weight.T
    away = vim(outside, logits, found) - vim(inside, logits, found)
    assert away.item() == pytest.approx(2 * found.alpha.item(), rel=1e-4)
    with pytest.raises(ConfigError, match="smaller"):
        fit_vim(gather([(features, torch.arange(90) % 3, torch.arange(90))], weight, torch.zeros(3)), dimension=4)


def test_neighbours_go_by_direction_and_a_small_bank_is_used_whole(world: Any) -> None:
    fitted = fit_knn(world.statistics)
    near = knn(world.shown, world.logits, fitted)
    torch.testing.assert_close(knn(7 * world.shown, world.logits, fitted), near, atol=1e-4, rtol=1e-4)
    most = knn(world.shown, world.logits, fitted, k=200)
    torch.testing.assert_close(knn(world.shown, world.logits, fitted, k=10_000), most)
    assert (most >= near).all()
    guide = fit_nnguide(world.statistics)
    lengths = guide.bank.norm(dim=1).double()
    torch.testing.assert_close(lengths, world.statistics.bank_logits.logsumexp(dim=1).abs(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        nnguide(7 * world.shown, world.logits, guide), nnguide(world.shown, world.logits, guide), rtol=1e-4, atol=1e-5
    )


def test_discriminants_weigh_what_they_are_given_and_need_images(world: Any) -> None:
    alone = SCORES["max_logit"].score(world.shown, world.logits, Fitted())
    none = fit_discriminant_max_logit(world.statistics, share=0)
    torch.testing.assert_close(discriminant_max_logit(world.shown, world.logits, none), alone)
    half, whole = (fit_discriminant_max_logit(world.statistics, share=share) for share in (0.5, 1.0))
    torch.testing.assert_close(whole.weight, 2 * half.weight)
    # Of directions: longer features say the same, and the mean class says nothing.
    found = discriminant_max_logit(world.shown, world.logits, whole)
    torch.testing.assert_close(discriminant_max_logit(7 * world.shown, world.logits, whole), found)
    torch.testing.assert_close(whole.weight.mean(dim=0), torch.zeros(12), rtol=0, atol=1e-4)
    kept = world.labels != 4
    statistics = replace(world.statistics, bank=world.features[kept], bank_label=world.labels[kept])
    fitted = fit_discriminant_max_logit(statistics)
    assert not fitted.weight[4].any()
    assert fitted.bias[4] == 0
    for share in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="share"):
            fit_discriminant_max_logit(world.statistics, share=share)


def test_a_bank_is_reduced_to_its_strongest_directions(world: Any) -> None:
    """Every image a prototype: against numpy with 3 of 12 directions; more outside of them is stranger, and with all of
    them it is `knn`."""
    fitted = fit_knn_pca(world.statistics, 3, 10_000)
    found = knn_pca(world.shown, world.logits, fitted)
    rows, _ = naive_reduced(world, 3)
    shown = world.shown.double().numpy()
    shown /= np.linalg.norm(shown, axis=1, keepdims=True)
    expected = np.linalg.norm(shown[:, None] - rows, axis=2).min(axis=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=1e-3)
    inside = world.shown @ fitted.basis @ fitted.basis.T
    assert (knn_pca(inside, world.logits, fitted) < found).all()
    assert (knn_pca(2 * world.shown - inside, world.logits, fitted) > found).all()
    whole = fit_knn_pca(world.statistics, prototypes=10_000)
    torch.testing.assert_close(whole.basis.T @ whole.basis, torch.eye(12), rtol=0, atol=1e-6)
    near = knn(world.shown, world.logits, fit_knn(world.statistics), k=1)
    torch.testing.assert_close(knn_pca(world.shown, world.logits, whole), near, rtol=1e-3, atol=2e-3)
    for numbers in ((0, 6), (3, 0)):
        with pytest.raises(ConfigError, match="one direction and prototype at least"):
            fit_knn_pca(world.statistics, *numbers)


def test_prototypes_are_centres_of_classes(world: Any) -> None:
    """One of a class is its mean direction; several lie as close to the images as those of another implementation."""
    rows, y = naive_reduced(world)
    one = fit_knn_pca(world.statistics, prototypes=1)
    assert one.prototype_label.tolist() == sorted(set(y.tolist()))
    means = np.stack([rows[y == name].mean(axis=0) for name in one.prototype_label.tolist()])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose((one.prototype @ one.basis.T).numpy(), means, rtol=0, atol=1e-5)
    several = fit_knn_pca(world.statistics, prototypes=3)
    assert torch.bincount(several.prototype_label).tolist() == [3] * 5
    torch.testing.assert_close(several.prototype.norm(dim=1), torch.ones(15))
    centres = (several.prototype @ several.basis.T).double().numpy()
    for name in range(5):
        own = rows[y == name]
        other = KMeans(3, n_init=20, random_state=0).fit(own).cluster_centers_
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        ours, theirs = (
            np.linalg.norm(own[:, None] - some, axis=2).min(axis=1).mean()
            for some in (centres[several.prototype_label.numpy() == name], other)
        )
        assert ours < 1.1 * theirs


@pytest.mark.parametrize("name", ["mahalanobis", "relative_mahalanobis"])
def test_mahalanobis_does_not_depend_on_units(name: str, world: Any) -> None:
    """Another scale of each feature is another unit: distances stay. A feature that is always 0 counts nothing."""
    score, fit, _ = SCORES[name]
    units = torch.linspace(0.5, 4, world.features.shape[1])
    dead = torch.zeros(len(world.features), 1)

    def changed(features: torch.Tensor) -> torch.Tensor:
        return torch.cat([features * units, dead[: len(features)]], dim=1)

    weight = torch.cat([world.weight, torch.zeros(len(world.weight), 1)], dim=1)
    keys = torch.arange(len(world.labels))
    other = gather([(changed(world.features), world.labels, keys)], weight, world.bias)
    found = score(changed(world.shown), world.logits, fit(other))
    expected = score(world.shown, world.logits, fit(world.statistics))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SCORES)
def test_strangers_are_stranger(name: str, world: Any) -> None:
    """Uniform features against the clusters that the classifier was made for: every score is above chance."""
    x, y, _, _ = arrays(world)
    mean = torch.from_numpy(np.stack([x[y == c].mean(axis=0) for c in range(5)])).float()
    # The classifier of the nearest mean: no training to wait for.
    weight, bias = mean, -0.5 * mean.square().sum(dim=1)
    keys = torch.arange(len(world.labels))
    fitted = SCORES[name].fit(gather([(world.features, world.labels, keys)], weight, bias))
    judge = partial(SCORES[name].score, fitted=fitted)
    random = torch.Generator().manual_seed(5)
    strange = 0.8 * torch.randn(200, 12, generator=random).abs()
    known = judge(world.features, world.features @ weight.T + bias)
    unknown = judge(strange, strange @ weight.T + bias)
    assert (unknown[:, None] > known[None, :]).double().mean() > 0.6
