"""Noise: the law it states, sums that are whole numbers, and draws that nobody's batch changes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import chi2, norm

from certify.errors import UsageError
from certify.smoothing.grid import Grid
from certify.smoothing.noise import ESTIMATION, SELECTION, Blocks, Law, Noise


def probabilities(law: Law) -> dict[int, float]:
    ends = [0, *(int(e) for e in law.ends), 2**64]
    return {law.first + i: (b - a) / 2**64 for i, (a, b) in enumerate(pairwise(ends))}


@pytest.mark.parametrize("deviation", [64.0, 101.3, 4096.0])
def test_the_rounded_gaussian_is_within_its_stated_error(deviation):
    law = Law.gaussian(deviation)
    found = probabilities(law)
    ends = (np.array(list(found)) - 0.5) / deviation
    middle = np.diff([*norm.cdf(ends[ends < 0]), *(1 - norm.sf(ends[ends >= 0])), 1])
    assert min(found.values()) >= 0
    assert 0.5 * np.abs(middle - np.array(list(found.values()))).sum() <= law.error + 1e-13
    assert law.error < 1e-9
    assert [found[k] for k in range(-100, 0)] == [found[k] for k in range(100, 0, -1)]


def test_the_uniform_law_has_equal_parts():
    found = probabilities(Law.uniform(3))
    assert list(found) == [-3, -2, -1, 0, 1, 2, 3]
    assert max(found.values()) - min(found.values()) <= 2.0**-63


@pytest.mark.parametrize("law", [Law.gaussian(2.5), Law.uniform(10), Law.gaussian(70.0), Law.gaussian(1000.0)])
def test_draws_follow_the_law(law):
    """Chi-square at one in a million, cells of few expected draws joined."""
    draws = Noise(Blocks(law, 500, 3), 17, ESTIMATION).draws(0, 1000).ravel()
    assert np.array_equal(draws, np.rint(draws))
    found, count = probabilities(law), len(draws)
    expected = np.array(list(found.values())) * count
    observed = np.bincount((draws - law.first).astype(int), minlength=len(expected))
    few = expected < 20
    joined = np.append(expected[~few], expected[few].sum() + 1e-9), np.append(observed[~few], observed[few].sum())
    statistic = float(np.sum((joined[1] - joined[0]) ** 2 / np.maximum(joined[0], 1)))
    assert statistic < chi2.ppf(1 - 1e-6, len(joined[0]) - 1)


@pytest.mark.parametrize(
    "law", [Law.gaussian(30.6), Law.gaussian(64.0), Law.gaussian(2500.0), Law.uniform(1), Law.uniform(2**15 - 1)]
)
def test_table_and_left_over_words_have_the_law_exactly(law):
    """Of 2^64 words so many give each value as its probability says, in whole numbers."""
    ends = [0, *(int(e) for e in law.ends), 2**64]
    words = np.bincount((law.table[: law.left] - law.first).astype(int), minlength=len(ends) - 1)
    shares = [0, *(int(e) for e in law._parts[1]), (2**law.bits - law.left) << (64 - law.bits)]
    for value, (a, b) in enumerate(pairwise(ends)):
        share = shares[value + 1] - shares[value]
        assert share >= 0
        assert (int(words[value]) << (64 - law.bits)) + share == b - a


@pytest.mark.parametrize("law", [Law.gaussian(66.0), Law.gaussian(2500.0), Law.uniform(6)])
def test_left_over_words_are_settled_by_all_64_bits(law):
    """The inverse of the shares' distribution function, against the draw; the other words are the table's."""

    class Fixed:
        def __init__(self):
            self.stream = np.random.Philox(5)
            self.asked = []

        def random_raw(self, count):
            self.asked.append(self.stream.random_raw(count))
            return self.asked[-1]

    count, source = 20_001, Fixed()
    found = np.empty(count, dtype=np.float32)
    law.draw(source, found)
    kind = np.uint16 if law.bits == 16 else np.uint32
    words = source.asked[0].view(kind)[:count].astype(np.uint64) >> np.uint64(0 if law.bits == 16 else 32 - law.bits)
    over = np.flatnonzero(words >= law.left)
    assert len(source.asked[1]) == len(over)
    assert len(over) > 0 or law.left == 2**law.bits - 1
    shares = [int(e) for e in law._parts[1]]
    expected = law.table[words.astype(int)]
    for place, rest in zip(over, source.asked[1], strict=True):
        whole = ((int(words[place]) - law.left) << (64 - law.bits)) + (int(rest) >> law.bits)
        expected[place] = law.first + sum(end <= whole for end in shares)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [3, 64, 100_000])
def test_draws_do_not_depend_on_how_they_are_asked_for(size):
    noise = Noise(Blocks(Law.gaussian(64.0), size, 1), 5, ESTIMATION)
    stop = 300 if size < 1000 else 25
    whole = noise.draws(0, stop)
    assert whole.shape == (stop, size)
    for cuts in ([0, 1, stop], [0, 7, 8, 20, stop], [0, 10, stop]):
        parts = [noise.draws(a, c) for a, c in pairwise(cuts)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(noise.draws(5, 9), whole[5:9])


def test_seed_and_purpose_each_make_another_noise_and_samples_have_their_own_signs():
    blocks, other_seed = Blocks(Law.gaussian(64.0), 2000, 1), Blocks(Law.gaussian(64.0), 2000, 2)
    base = Noise(blocks, 5, ESTIMATION).draws(0, 40)
    others = [Noise(other_seed, 5, ESTIMATION), Noise(blocks, 6, ESTIMATION), Noise(blocks, 5, SELECTION)]
    for draws in (*(noise.draws(0, 40) for noise in others), Noise(blocks, 5, ESTIMATION).draws(2000, 2040)):
        assert abs(np.corrcoef(base.ravel(), draws.ravel())[0, 1]) < 0.1
    assert abs(Noise(blocks, 5, ESTIMATION).signs.sum()) < 5 * np.sqrt(2000)
    assert set(np.unique(Noise(blocks, 5, ESTIMATION).signs)) == {-1, 1}
    # One linear functional of the noise of two samples: what it tells of one is not what it tells of the other.
    first, second = (Noise(blocks, sample, ESTIMATION).draws(0, 2000).sum(axis=1) for sample in (5, 6))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.12


def test_what_is_kept_is_what_would_be_made_again(monkeypatch):
    law = Law.gaussian(64.0)
    kept, twice = Blocks(law, 100, 3), Blocks(law, 100, 3)
    monkeypatch.setattr("certify.smoothing.noise.KEPT", 250_000)
    for _ in range(2):
        assert np.array_equal(Noise(kept, 1, ESTIMATION).draws(0, 5000), Noise(twice, 1, ESTIMATION).draws(0, 5000))
    assert 0 < sum(block.nbytes for block in kept.kept.values()) <= 250_000
    assert len(kept.kept) < 5000 / kept.rows
    wide = Blocks(Law.gaussian(5000.0), 100, 3)
    assert wide.block(ESTIMATION, 0).dtype == np.float32
    assert np.abs(wide.block(ESTIMATION, 0)).max() < 2**24


def test_inputs_and_noise_add_up_exactly():
    """The floating-point gap: from x + noise nobody can tell x, as the sum is on the grid whatever x is."""
    x = (np.arange(256) / 255).astype(np.float32)
    grid = Grid.of(x, (0.0, 1.0), 0.25)
    places, away = grid.places(x, 2)
    assert away < 1e-6
    assert 0.25 / grid.step >= 30
    noise = Noise(Blocks(Law.gaussian(0.25 / grid.step), 256, 0), 0, ESTIMATION).draws(0, 200)
    total = places.astype(np.float32) + noise
    assert np.array_equal(total, np.rint(total))
    assert np.array_equal(grid.inputs(total.copy())[:, ::-1], grid.inputs(total[:, ::-1].copy()))
    assert np.allclose(grid.inputs(places.astype(np.float32)), x, atol=1e-7)


@pytest.mark.parametrize(("levels", "factor"), [(255, 1), (16, 16), (256, 1), (64, 4)])
def test_the_grid_is_that_of_the_data_where_it_has_one(levels, factor):
    x = (np.arange(levels + 1) / levels).astype(np.float32)
    grid = Grid.of(x * 2 - 1, (-1.0, 1.0), 0.5)
    assert grid.step == pytest.approx(2 / levels / factor)
    assert 0.5 / grid.step >= 30
    places, away = grid.places(x * 2 - 1, 2)
    assert np.array_equal(places, np.arange(levels + 1) * factor)
    assert away < 1e-5


def test_data_on_no_grid_are_moved_and_the_distance_is_told():
    x = np.random.default_rng(0).uniform(size=50).astype(np.float32)
    grid = Grid.of(x, (0.0, 1.0), 0.25)
    places, away = grid.places(x, 2)
    real = np.linalg.norm(x.astype(np.float64) - (grid.low + grid.step * places))
    assert real <= away <= real * (1 + 1e-6) + 1e-12
    assert away < 0.25 / 4096 * np.sqrt(50) / 2
    assert grid.places(x, 1)[1] >= away >= grid.places(x, np.inf)[1] >= real / np.sqrt(50)
    with pytest.raises(UsageError, match="too small"):
        Grid.of(x, (0.0, 1e6), 1e-3)
    with pytest.raises(UsageError, match="too large"):
        Grid.of(np.rint(x * 255) / 255, (0.0, 1.0), 1e6)
