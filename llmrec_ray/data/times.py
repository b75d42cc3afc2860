"""A column of moments in any common form -> microseconds since 1970 UTC.

Numbers have a unit; typed times carry their own; text is ISO 8601 or of a form like strptime's. Moments that name no
zone are of the zone that is given. Knows nothing of logs.
"""

from __future__ import annotations

import polars as pl

from llmrec_ray.config.data import TimeUnit

__all__ = ["TIME_LIMIT_US", "microseconds"]

MICROSECONDS = {"s": 1_000_000.0, "ms": 1_000.0, "us": 1.0, "ns": 0.001}
TIME_LIMIT_US = 7_258_118_400_000_000  # 2200-01-01: beyond it the unit is wrong
ISO_WITH_OFFSET = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z")
ISO_WITHOUT = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M")


def microseconds(column: pl.Series, unit: TimeUnit, form: str | None = None, zone: str = "UTC") -> pl.Series:
    """Int64, null where there is no time, -1 before 1970 and TIME_LIMIT_US for all that is as late or later.

    unit: of numbers without a form; "iso8601" for text without one. form: of text or digits, as strptime writes it. A
    moment that a zone skips (clocks going forward) is none; of one that it has twice the first counts.
    """
    dtype = column.dtype
    if dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if isinstance(column.dtype, pl.Datetime):
        return _whole(_in_utc(column, zone).to_physical(), column.dtype.time_unit)
    if form is not None:  # of numbers too, such as 20260131
        return _whole(_of_form(_text(column), form, zone), "us")
    if unit == "iso8601":
        return _whole(_iso8601(_text(column), zone), "us")
    if not dtype.is_numeric():
        column = _text(column)
    return _numeric(column, unit)


def _text(column: pl.Series) -> pl.Series:
    return column.cast(pl.String, strict=False).str.strip_chars()


def _numeric(column: pl.Series, unit: str) -> pl.Series:
    """Whole numbers stay exact; others are rounded to the microsecond."""
    if column.dtype.is_integer():
        return _whole(column, unit)
    whole = column.cast(pl.Int64, strict=False) if column.dtype == pl.String else None
    if whole is not None and whole.null_count() == column.null_count():
        return _whole(whole, unit)
    rounded = (column.cast(pl.Float64, strict=False).fill_nan(None) * MICROSECONDS[unit]).round()
    fractions = rounded.clip(-1, TIME_LIMIT_US).cast(pl.Int64)
    return fractions if whole is None else _either(_whole(whole, unit), fractions)


def _whole(numbers: pl.Series, unit: str) -> pl.Series:
    factor = MICROSECONDS[unit]
    clipped = numbers.cast(pl.Int64, strict=False) if numbers.dtype != pl.UInt64 else _clipped_uint64(numbers)
    clipped = clipped.clip(-1, int(TIME_LIMIT_US / factor))
    if unit == "ns":
        return clipped // 1_000
    in_microseconds = clipped * int(factor)
    return in_microseconds.clip(-1, TIME_LIMIT_US)


def _clipped_uint64(numbers: pl.Series) -> pl.Series:
    return numbers.clip(upper_bound=2**62).cast(pl.Int64)


def _in_utc(column: pl.Series, zone: str) -> pl.Series:
    assert isinstance(column.dtype, pl.Datetime)
    if column.dtype.time_zone is not None or zone == "UTC":
        return column
    return column.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")


def _of_form(text: pl.Series, form: str, zone: str) -> pl.Series:
    form = form.replace(".%f", "%.f")
    if "%z" in form or "%#z" in form or "%:z" in form:
        return text.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False).to_physical()
    return _in_utc(text.str.to_datetime(form, time_unit="us", strict=False), zone).to_physical()


def _iso8601(text: pl.Series, zone: str) -> pl.Series:
    """Date, or date and time with or without offset; each form is tried on what is left by those before."""
    plain = text.str.replace(r"^(\d{4}-\d\d-\d\d)[ t]", "${1}T").str.replace(r"[zZ]$", "+00:00")
    found = pl.Series(plain.name, [None], dtype=pl.Int64).new_from_index(0, len(plain))
    for form in (*ISO_WITH_OFFSET, *ISO_WITHOUT):
        found = _either(found, _of_form(plain, form, zone))
        if found.null_count() == plain.null_count():
            return found
    dates = plain.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
    return _either(found, _in_utc(dates, zone).to_physical())


def _either(first: pl.Series, second: pl.Series) -> pl.Series:
    return first.zip_with(first.is_not_null(), second)
