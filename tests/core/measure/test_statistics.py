"""Statistics against numbers worked out by hand, exact tests and simulated coverage."""

import math

import numpy as np
import pytest

from vmae.core.errors import InputError
from vmae.core.measure.statistics import holm, interval, needed_seeds, paired


def right(hits, videos):
    return np.arange(videos) < hits


def test_an_interval_is_that_of_a_binomial_share():
    # 40 of 73: p = 0.548, 1.96 * sqrt(p q / n) = 0.114.
    found = interval(right(40, 73))
    assert found.mean == pytest.approx(40 / 73)
    assert (found.low, found.high) == pytest.approx((0.548 - 0.114, 0.548 + 0.114), abs=0.02)
    assert (found.videos, found.seeds) == (73, 1)
    assert found.text() == f"54.8% [{found.low * 100:.1f}, {found.high * 100:.1f}]"


def test_all_right_of_few_is_not_certain():
    found = interval(np.ones(10))
    assert found.mean == found.high == 1
    # Clopper-Pearson's lower end for 10 of 10 is 0.69.
    assert 0.5 < found.low < 0.8
    assert interval(np.zeros(10)).high == pytest.approx(1 - found.low, abs=0.1)


def test_seeds_that_disagree_widen_the_interval():
    # Every video right at one seed and wrong at the other: the mean over seeds is 0.5 for each video.
    apart = interval(np.stack([np.ones(100), np.zeros(100)]))
    together = interval(np.full((2, 100), 0.5))
    assert apart.mean == together.mean == 0.5
    assert apart.seeds == 2
    # Deviations of 0.5 * sqrt(2): the mean of two draws is 0.5 +- 0.71 at half of the draws.
    assert (apart.low, apart.high) == (0, 1)
    assert together.high - together.low < 0.1


@pytest.mark.parametrize(("wins", "told"), [(4, False), (6, True)])
def test_a_difference_needs_as_many_videos_as_an_exact_sign_test(wins, told):
    # Two-sided p of 4 against 0 is 2 * 0.5**4 = 0.125; of 6 against 0 it is 0.031.
    a, b = right(50 + wins, 100), right(50, 100)
    found = paired(a, b)
    assert found.mean == pytest.approx(wins / 100)
    assert found.told_apart is told
    assert paired(b, a).told_apart is told
    assert paired(b, a).mean == -found.mean


def test_one_video_tells_nothing():
    assert not paired([1], [0]).told_apart
    assert not paired([1, 1, 1], [0, 0, 0]).told_apart


def test_pairing_sees_what_two_intervals_do_not():
    # b misses 20 of the 100 that a gets: unpaired intervals of 60 and 40 of 200 videos nearly touch.
    a, b = right(100, 200), right(80, 200)
    assert interval(a).low < interval(b).high
    found = paired(a, b)
    assert found.told_apart
    # d = 1 on 20 of 200: sd = sqrt(0.1 * 0.9) = 0.3, 1.96 * 0.3 / sqrt(200) = 0.042.
    assert (found.low, found.high) == pytest.approx((0.1 - 0.042, 0.1 + 0.042), abs=0.012)


def test_a_difference_that_one_seed_made_is_not_told_apart():
    rng = np.random.default_rng(0)
    a = np.stack([rng.random(300) < p for p in (0.7, 0.4, 0.4)])
    b = np.stack([rng.random(300) < p for p in (0.4, 0.4, 0.4)])
    assert paired(a[0], b[0]).told_apart
    assert not paired(a, b).told_apart


def test_needed_seeds_by_hand():
    # Both arms: seeds at 0.5 +- 0.1 around 0.52 and 0.48 on the same 100 videos.
    def arm(*accuracies):
        return np.stack([right(round(100 * p), 100) for p in accuracies])

    a, b = arm(0.62, 0.42), arm(0.58, 0.38)
    between = 2 * 0.02  # variance of two values 0.2 apart: 0.02 in each arm
    d = a.mean(0) - b.mean(0)
    inside = (a.var(0, ddof=1).mean() + b.var(0, ddof=1).mean()) / 2
    assert d.var(ddof=1) < inside  # seeds explain all of it
    expected = math.floor(between / (0.04**2 / 1.96**2)) + 1
    assert needed_seeds(a, b) == pytest.approx(expected, abs=1)
    assert needed_seeds(a[0], b[0]) is None
    assert needed_seeds(a, a) is None


def test_no_number_of_seeds_helps_where_videos_decide():
    # The same answers at every seed: right on other videos, one more of 20.
    a = np.tile(np.r_[np.ones(6), np.zeros(5), np.zeros(9)], (3, 1))
    b = np.tile(np.r_[np.zeros(6), np.ones(5), np.zeros(9)], (3, 1))
    assert paired(a, b).mean == pytest.approx(0.05)
    assert needed_seeds(a, b) is None


def test_coverage_of_both_intervals_is_about_its_level():
    rng = np.random.default_rng(1)
    hits = told = 0
    for trial in range(200):
        hard = rng.random(60)
        draw = [rng.random((2, 60)) < 0.2 + 0.6 * hard for _ in range(2)]
        found = interval(draw[0], seed=trial)
        hits += found.low <= 0.5 <= found.high
        told += paired(*draw, seed=trial).told_apart
    assert hits >= 184  # 95 % of 200 less two standard deviations
    assert told <= 16


def test_several_comparisons_hold_together_as_holm_has_it():
    # Holm 1979 by hand: 0.01 <= 0.05 / 4, 0.02 > 0.05 / 3, and nothing after the first that fails.
    assert holm([0.02, 0.01, 0.03, 0.04]) == [False, True, False, False]
    assert holm([0.01, 0.04, 0.02, 0.012]) == [True, True, True, True]
    assert holm([0.051]) == [False] and holm([]) == []


def test_p_is_that_of_the_interval_and_of_the_normal_tail_where_draws_end():
    rng = np.random.default_rng(0)
    a = rng.random(400) < 0.6
    near = paired(a, a ^ (rng.random(400) < 0.02))
    assert near.told_apart == (near.p < 0.05)
    b = a & (rng.random(400) < 0.9)
    z = (a.mean() - b.mean()) / ((a.astype(float) - b).std() / 20)
    # The two made-up videos of a pair make it larger, by less than three times here.
    assert 1 < paired(a, b).p / math.erfc(z / math.sqrt(2)) < 3
    assert paired(a, a).p == 1.0


def test_refusals():
    with pytest.raises(InputError, match="expected the same videos, got 3 and 2"):
        paired([1, 0, 1], [1, 0])
    with pytest.raises(InputError, match=r"expected answers \[videos\]"):
        interval([])
    with pytest.raises(InputError, match=r"expected answers in \[0, 1\], got 0 to 2"):
        interval([0, 2])
