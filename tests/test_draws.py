"""Draws are a pure function of (seed, epoch), each kind from a stream of its own, with the right distributions."""

import numpy as np
import pytest

from fastcifar.draws import EpochDraws, draw_epoch

N, B = 1000, 128


def draw(seed: int = 0, epoch: int = 1, **settings: object) -> EpochDraws:
    return draw_epoch(seed, epoch, num_images=N, batch_size=B, **{"mixup_alpha": 0.2, "cutout": 8, **settings})  # type: ignore[arg-type]


def same(a: EpochDraws, b: EpochDraws, *names: str) -> bool:
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names or vars(a))


def test_the_same_seed_and_epoch_give_the_same_draws() -> None:
    np.random.seed(0)
    first = draw(3, 7)
    np.random.seed(1)
    draw(4, 7)
    assert same(first, draw(3, 7))


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 2}])
def test_another_seed_or_epoch_gives_other_draws(other: dict[str, int]) -> None:
    a, b = draw(), draw(**other)
    assert not any(same(a, b, name) for name in vars(a) if name != "box")
    a, b = draw(mixup_alpha=0.0, cutmix_alpha=1.0), draw(mixup_alpha=0.0, cutmix_alpha=1.0, **other)
    assert not same(a, b, "box") and not same(a, b, "lam")


def test_mixup_leaves_order_crops_and_flips_alone() -> None:
    with_mixup, without = draw(), draw(mixup_alpha=0.0)
    assert same(with_mixup, without, "index", "top", "left", "flip")
    assert without.partner is None and without.lam is None


def test_crops_and_flips_do_not_depend_on_each_others_settings() -> None:
    assert same(draw(), draw(flip="none", crop_padding=0), "index", "partner", "lam", "hole")


def test_cutout_and_cutmix_leave_the_other_draws_alone() -> None:
    pasted = draw(mixup_alpha=0.0, cutmix_alpha=1.0)
    assert same(draw(), pasted, "index", "top", "left", "flip", "partner", "hole")
    assert same(draw(), draw(cutout=0), "index", "top", "left", "flip", "partner", "lam")
    assert draw(cutout=0).hole is None and draw().box is None and pasted.box is not None


def test_holes_lie_around_a_uniform_pixel() -> None:
    hole = np.concatenate([draw(0, e, cutout=8).hole for e in range(1, 65)])  # type: ignore[misc]
    assert hole.min() == -4 and hole.max() == 27
    counts = np.bincount(((hole + 4) // 4) @ [8, 1], minlength=64)
    assert np.sum((counts - 1000) ** 2 / 1000) < 114, "63 degrees of freedom: above has a probability below 1e-4"


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_boxes_are_those_of_the_paper(alpha: float) -> None:
    """Their sides follow sqrt(1 - share), around a uniform pixel, cut at the edge; lambda is what lies outside."""
    epochs = [draw(0, e, mixup_alpha=0.0, cutmix_alpha=alpha) for e in range(1, 251)]
    box = np.concatenate([d.box for d in epochs])  # type: ignore[misc]
    lam = np.concatenate([d.lam for d in epochs])  # type: ignore[misc]
    begin, end = box[:, ::2], box[:, 1::2]
    assert (box >= 0).all() and (box <= 32).all() and (begin <= end).all()
    sides = end - begin
    assert np.allclose(lam, 1 - sides.prod(1) / 1024, atol=1e-6)
    half = sides[:, ::-1] // 2  # of the other direction: the whole half where the box is not cut there
    middle = np.where(begin > 0, begin + half, end - half)[((begin > 0) & (end < 32))[:, ::-1]]
    assert np.unique(middle).tolist() == list(range(32)), "the first and the last row and column too"
    rng = np.random.default_rng(0)
    cut = (32 * np.sqrt(1 - rng.beta(alpha, alpha, 100_000))).astype(int)
    middle = rng.integers(0, 32, (2, 100_000))
    begin, end = np.clip(middle - cut // 2, 0, 32), np.clip(middle + cut // 2, 0, 32)
    expected = 1 - (end - begin).prod(0) / 1024
    assert np.mean(lam) == pytest.approx(expected.mean(), abs=0.02)
    assert np.std(lam) == pytest.approx(expected.std(), abs=0.02)
    whole = box[(sides[:, 0] == sides[:, 1]) & (sides[:, 0] > 0)]
    assert len(whole) > 100, "uncut boxes are square"


def test_every_image_comes_once_an_epoch() -> None:
    assert sorted(draw().index) == list(range(N))


def test_partners_are_a_permutation_of_each_batch_the_last_one_included() -> None:
    partner = draw().partner
    assert partner is not None
    for start in range(0, N, B):
        batch = partner[start : start + B]
        assert sorted(batch) == list(range(len(batch)))
    assert not np.array_equal(partner[:B], partner[B : 2 * B])


def test_one_lambda_a_batch() -> None:
    lam = draw().lam
    assert lam is not None and lam.shape == (-(-N // B),) and lam.dtype == np.float32
    assert len(set(lam.tolist())) == len(lam)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 2.0])
def test_lambda_is_beta_distributed(alpha: float) -> None:
    lam = np.concatenate([draw(0, e, mixup_alpha=alpha).lam for e in range(1, 501)])  # type: ignore[misc]
    assert np.mean(lam) == pytest.approx(0.5, abs=0.03)
    assert np.var(lam) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    # the ceiling of lambda-weighted training accuracy, from the density: 89.9 % at alpha 0.2, 81.8 % at 0.5, 75 % at 1
    ceiling = {0.2: 0.899, 0.5: 0.818, 1.0: 0.75, 2.0: 0.6875}[alpha]
    assert np.mean(np.maximum(lam, 1 - lam)) == pytest.approx(ceiling, abs=0.005)


def test_crop_corners_are_uniform_and_independent() -> None:
    draws = [draw(0, e) for e in range(1, 82)]
    cells = np.concatenate([9 * d.top + d.left for d in draws])
    counts = np.bincount(cells, minlength=81)
    chi_squared = np.sum((counts - 1000) ** 2 / 1000)
    assert counts.shape == (81,)
    assert 40 < chi_squared < 136, "80 degrees of freedom: outside has a probability below 1e-4"


def test_flips_are_fair_and_independent_of_crops() -> None:
    draws = [draw(0, e) for e in range(1, 101)]
    flip, top = np.concatenate([d.flip for d in draws]), np.concatenate([d.top for d in draws])
    assert np.mean(flip) == pytest.approx(0.5, abs=0.007)
    assert np.corrcoef(flip, top)[0, 1] == pytest.approx(0, abs=0.015)


def test_alternating_flip_shows_both_sides_in_turn() -> None:
    def sides(epoch: int) -> np.ndarray:
        d = draw(0, epoch, flip="alternating")
        return d.flip[np.argsort(d.index)]

    assert np.array_equal(sides(1), ~sides(2)) and np.array_equal(sides(1), sides(3))
    assert np.mean(sides(1)) == pytest.approx(0.5, abs=0.06)
    assert np.array_equal(sides(1), sides(301))  # the bug: from epoch 128 on, the number did not fit eight bits


def test_no_flip_and_no_crop() -> None:
    d = draw(flip="none", crop_padding=0)
    assert not d.flip.any() and not d.top.any() and not d.left.any()
