from __future__ import annotations

from time import perf_counter

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from llmrec_ray.errors import RequestError
from llmrec_ray.recommend import Filters
from llmrec_ray.recommend.filters import ItemFilter, check_filters
from llmrec_ray.vocab import Vocabulary

ITEMS = Vocabulary(["a", "b", "c", "d", "e"])
ATTRIBUTES = pl.DataFrame({
    "genres": ["Action Comedy", "COMEDY", "Space Opera", None, "drama"],
    "year": [1990, 1995, 2000, None, 2005],
    "price": [1.5, float("nan"), 3.0, 4.5, -1.0],
    "tags": [["New", "Two Words"], [], None, ["old"], ["new"]],
    "adult": [True, False, None, False, True],
})


def passing(**fields) -> str:
    filters = Filters.model_validate(fields)
    check_filters(filters, ATTRIBUTES)
    return "".join(ITEMS.id(int(row)) for row in np.flatnonzero(ItemFilter(ITEMS, ATTRIBUTES).passing(filters)))


def test_without_filters_everything_passes():
    assert Filters().is_empty
    assert passing() == "abcde"


def test_texts_match_in_any_case_whole_or_by_a_word_and_lists_by_an_element():
    assert passing(attributes={"genres": "comedy"}) == "ab"
    assert passing(attributes={"genres": "SPACE opera"}) == "c"
    assert passing(attributes={"genres": ["DRAMA", "Opera"]}) == "ce"
    assert passing(attributes={"tags": "NEW"}) == "ae"
    assert passing(attributes={"tags": "two words"}) == "a"


def test_a_list_that_was_spelt_out_matches_by_an_element():
    column = pl.DataFrame({"categories": ["Beauty, Hair Care", "Hair Care", "Beauty", None, ", "]})
    item_filter = ItemFilter(ITEMS, column)

    def having(value: str) -> list[int]:
        return np.flatnonzero(item_filter.passing(Filters(attributes={"categories": value}))).tolist()

    assert having("hair care") == [0, 1]
    assert having("Beauty") == [0, 2]
    assert having("beauty, hair care") == [0]
    assert having("") == []


def test_numbers_and_booleans_match_however_they_are_written():
    for year in (1995, 1995.0, "1995"):
        assert passing(attributes={"year": year}) == "b"
    for adult in (True, "true"):
        assert passing(attributes={"adult": adult}) == "ae"


def test_a_value_that_a_column_of_numbers_cannot_hold_passes_nothing():
    for year in (10**30, 1995.5, True, "many", "", float("nan"), float("inf"), "1e400", 10**400):
        assert passing(attributes={"year": year}) == ""
    assert passing(attributes={"price": [float("nan"), 10**400, "1.5", 3]}) == "ac"
    assert passing(attributes={"year": [*range(1991), "2005"]}) == "ae"


def test_filtering_by_a_column_with_a_number_of_its_own_for_every_item_takes_no_index():
    n_items = 200_000
    prices = pl.DataFrame({"price": np.arange(n_items) / 7})
    item_filter = ItemFilter(Vocabulary(map(str, range(n_items))), prices)
    start = perf_counter()
    assert item_filter.passing(Filters(attributes={"price": 3.0})).nonzero()[0].tolist() == [21]
    assert perf_counter() - start < 0.5


def test_ranges_include_their_ends_and_leave_out_items_without_a_number():
    assert passing(ranges={"year": {"min": 1995, "max": 2000}}) == "bc"
    assert passing(ranges={"year": {"min": 1995.5}}) == "ce"
    assert passing(ranges={"year": {"max": 3000}}) == "abce"
    assert passing(ranges={"price": {"min": -5}}) == "acde"
    assert passing(ranges={"price": {"max": 2}, "year": {"min": 2001}}) == "e"
    assert not Filters.model_validate({"ranges": {"year": {"min": 1}}}).is_empty


def test_an_item_must_pass_every_filter():
    assert passing(attributes={"adult": True}, ranges={"year": {"max": 1999}}, allow=["a", "b", "zzz"]) == "a"
    assert passing(allow=["a", "b"], deny=["b", "zzz"]) == "a"
    assert passing(allow=[]) == ""


@pytest.mark.parametrize(("bounds", "message"), [
    ({}, "a range has neither min nor max: give one of them"),
    ({"min": 2, "max": 1}, "min 2 is above max 1, so that nothing passes: exchange them"),
    ({"min": float("nan")}, "finite number"), ({"max": float("inf")}, "finite number"),
    ({"min": "early"}, "valid number"), ({"from": 3}, "Extra inputs"),
])
def test_a_range_that_says_nothing_is_refused(bounds, message):
    with pytest.raises(ValidationError, match=message):
        Filters.model_validate({"ranges": {"year": bounds}})


def test_a_filter_by_what_items_do_not_have_names_what_they_have():
    known = "There is no item attribute 'colour' to filter by; there are: genres, year, price, tags, adult."
    for fields, field in (({"attributes": {"colour": "red"}}, "filters.attributes.colour"),
                          ({"ranges": {"colour": {"min": 1}}}, "filters.ranges.colour")):
        with pytest.raises(RequestError) as caught:
            passing(**fields)
        assert (str(caught.value), caught.value.field) == (known, field)
    with pytest.raises(RequestError) as caught:
        check_filters(Filters(attributes={"colour": "red"}), pl.DataFrame())
    assert str(caught.value) == "There is no item attribute 'colour' to filter by; there are: none."


def test_a_range_of_texts_names_the_attributes_that_have_numbers():
    with pytest.raises(RequestError) as caught:
        passing(ranges={"genres": {"min": 1}})
    assert str(caught.value) == (
        "The item attribute 'genres' has no numbers, so no range of it can be asked for; attributes with numbers: "
        "year, price. Name values in filters.attributes instead."
    )
    assert caught.value.field == "filters.ranges.genres"
