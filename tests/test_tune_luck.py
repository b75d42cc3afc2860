"""Whether a winner was lucky, by hand-made figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec_ray.tune.luck import gap, paired
from llmrec_ray.tune.outcome import Confirmation

SEEDS = (101, 102, 103)


def confirmation(winner: list[float], recipe: list[float], **more: object) -> Confirmation:
    return Confirmation(dict(zip(SEEDS, winner, strict=False)), dict(zip(SEEDS, recipe, strict=False)), **more)


def test_a_winner_that_is_ahead_by_far_more_than_seeds_differ_is_better():
    found = paired(confirmation([0.104, 0.105, 0.106], [0.100, 0.101, 0.101]))
    assert found.verdict == "better" and found.ahead == 3
    assert found.mean == pytest.approx(0.013 / 3) and found.sd == pytest.approx(0.0005774, abs=1e-6)
    reach = 4.302653 * found.sd / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((found.mean - reach, found.mean + reach))
    assert found.sentence("NDCG@10") == (
        "The winner is better on 3 of 3 fresh seeds, by +0.0043 NDCG@10 on average, 0.1050 against 0.1007 (standard "
        "deviation 0.0006, 95 % interval +0.0029 to +0.0058): more than the luck of the seed."
    )


def test_a_winner_that_is_ahead_by_less_than_seeds_differ_is_luck_even_on_all_of_them():
    found = paired(confirmation([0.11, 0.101, 0.13], [0.10, 0.1, 0.1]))
    assert found.ahead == 3 and found.verdict == "no difference shown"
    assert found.sentence("NDCG@10").endswith("95 % interval -0.0232 to +0.0505): 3 seeds do not tell that from luck.")


def test_a_winner_behind_on_every_seed_is_worse():
    found = paired(confirmation([0.100, 0.101, 0.101], [0.104, 0.105, 0.106]))
    assert found.verdict == "worse" and found.ahead == 0
    assert found.sentence("HR@10").startswith("The winner is better on 0 of 3 fresh seeds, by -0.0043 HR@10")
    assert found.sentence("HR@10").endswith("the recipe as it is does better.")


def test_one_seed_cannot_tell():
    found = paired(confirmation([0.2], [0.1]))
    assert found.verdict == "one seed only" and found.sd is None
    assert found.sentence("NDCG@10") == (
        "The winner is better on 1 of 1 fresh seed, by +0.1000 NDCG@10, 0.2000 against 0.1000; one seed cannot "
        "tell that from luck."
    )


def test_without_a_seed_that_both_have_nothing_is_compared():
    found = paired(Confirmation({101: 0.2}, {102: 0.1}))
    assert found.verdict == "not compared" and not found.differences
    assert found.sentence("NDCG@10") == (
        "Winner and recipe share no fresh seed, so nobody knows whether the winner was lucky."
    )


def test_a_winner_that_is_the_recipe_is_not_better():
    found = paired(confirmation([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]))
    assert found.verdict == "no difference shown" and found.mean == found.sd == 0.0


def test_figures_that_are_no_numbers_are_left_out():
    assert [*paired(confirmation([math.nan, 0.2, 0.3], [0.1, 0.1, 0.2])).differences] == [102, 103]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=3))
def test_whoever_is_called_winner_the_comparison_is_the_same_but_for_its_sign(pairs):
    ours, theirs = [ours for ours, _ in pairs], [theirs for _, theirs in pairs]
    one, other = paired(confirmation(ours, theirs)), paired(confirmation(theirs, ours))
    assert one.mean == pytest.approx(-other.mean) and one.sd == pytest.approx(other.sd)
    opposite = {"better": "worse", "worse": "better"}
    assert other.verdict == opposite.get(one.verdict, one.verdict)
    assert one.low <= one.mean <= one.high


def test_the_gap_goes_from_search_to_fresh_seeds_to_test():
    found = gap(0.12, confirmation([0.10, 0.11, 0.09], [], test=0.08, test_seed=102))
    assert found.flattered == pytest.approx(0.02) and found.generalisation == pytest.approx(0.03)
    assert found.sentence("NDCG@10") == (
        "The search saw 0.1200 NDCG@10 for the winner, fresh seeds give 0.1000 on the same split (-0.0200): the part "
        "that was chance of the trial. The one model that was scored on test has 0.1100 on validation and 0.0800 on "
        "test (-0.0300): what was fitted to validation, and how test differs."
    )


def test_a_gap_says_only_what_is_known():
    assert gap(0.12, confirmation([], [])).sentence("NDCG@10") == ""
    assert "test" not in gap(0.12, confirmation([0.1], [0.1])).sentence("NDCG@10")


def test_a_winner_that_is_the_recipe_itself_is_not_compared_with_itself():
    found = paired(Confirmation({101: 0.2, 102: 0.3}, {101: 0.2, 102: 0.3}, same=True))
    assert (found.verdict, found.low, found.high) == ("the recipe itself", None, None)
    assert found.sentence("NDCG@10") == (
        "The winner is the recipe as it is, with 0.2500 NDCG@10 on 2 fresh seeds on average: nothing to compare."
    )
    alone = paired(Confirmation({101: 0.2}, {101: 0.2}, same=True))
    assert alone.sentence("NDCG@10").endswith("with 0.2000 NDCG@10 on one fresh seed: nothing to compare.")
