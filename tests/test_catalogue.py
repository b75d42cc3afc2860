from __future__ import annotations

import polars as pl
import pytest

from llmrec_ray.changes import NewItem
from llmrec_ray.errors import RequestError
from llmrec_ray.recommend import Catalogue
from llmrec_ray.types import Histories
from llmrec_ray.vocab import Vocabulary

ATTRIBUTES = pl.DataFrame(
    {"year": [1990], "stock": [3], "price": [1.5]},
    schema={"year": pl.Int64, "stock": pl.UInt8, "price": pl.Float32},
)
CATALOGUE = Catalogue(Vocabulary([]), Vocabulary(["a"]), ["A"], ATTRIBUTES, Histories.from_lists([]))


def check(**attributes) -> None:
    CATALOGUE.check_additions([NewItem(item_id="new", text="a thing", attributes=attributes)], has_encoder=True)


def test_numbers_that_the_columns_hold_are_taken():
    check(year=-(2**63), stock=255, price=3)
    check(year=2**63 - 1, stock=0, price=-0.5)


@pytest.mark.parametrize(("name", "value", "dtype"), [
    ("year", 10**30, "Int64"), ("stock", 256, "UInt8"), ("stock", -1, "UInt8"), ("price", 1e300, "Float32"),
    ("price", 10**400, "Float32"),
])
def test_a_number_that_its_column_cannot_hold_is_refused_before_the_item_is_kept(name, value, dtype):
    with pytest.raises(RequestError) as caught:
        check(**{name: value})
    assert (caught.value.field, str(caught.value)) == (
        f"items.0.attributes.{name}",
        f"The attribute '{name}' is too large or too small for the catalogue ({dtype}): send another number, "
        "or leave it out.",
    )
