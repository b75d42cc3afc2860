"""What ingest must make of a small log, row by row in plain Python: the yardstick of the property tests.

Written from the recipe's documentation, not from the program: no frames, no ranges, no vectors.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

LIMIT = 7_258_118_400


@dataclass(frozen=True)
class Row:
    """One record as it stands in a file: texts, None where nothing stands."""

    user: str | None
    item: str | None
    second: str | None
    value: str | None = "1"
    event: str | None = "view"
    event_id: str | None = None
    session: str | None = None


@dataclass(frozen=True)
class Happened:
    user: str
    item: str
    second: int
    value: float
    event_id: str | None
    named_session: str | None
    place: int
    session: int | None = None

    @property
    def order(self) -> tuple[int, int]:
        return self.second, self.place


@dataclass(frozen=True)
class Expected:
    """Events by user and time, rows quarantined as (file, position, reason), and rows dropped by filter."""

    events: list[Happened]
    quarantined: list[tuple[int, int, str]]
    dropped: dict[str, int]


def expected(files: list[list[Row]], data: dict[str, Any]) -> Expected:
    """data: the section `data` as a recipe spells it; its `interactions` is one mapping with all columns named."""
    dropped: Counter[str] = Counter()
    events, quarantined, place = [], [], 0
    for number, rows in enumerate(files):
        for position, row in enumerate(rows, start=1):
            place += 1
            reason = reason_of(row, data["interactions"])
            if reason is not None:
                quarantined.append((number, position, reason))
            elif (filter_name := uncounted(row, data["interactions"])) is not None:
                dropped[filter_name] += 1
            else:
                events.append(happened(row, place, data["interactions"]))
    for step in (window, repeated_events, robots, sessions, repeated_pairs, old_events, k_core):
        events = step(events, data, dropped)
    return Expected(sorted(events, key=lambda e: (e.user.encode(), *e.order)), quarantined, dict(dropped))


def reason_of(row: Row, log: dict[str, Any]) -> str | None:
    if row.user is None:
        return "missing_user_id"
    if row.item is None:
        return "missing_item_id"
    try:
        second = int(row.second or "")
    except ValueError:
        return "bad_timestamp"
    if not 0 <= second < LIMIT:
        return "timestamp_out_of_range"
    if row.value is None:
        return None if log.get("missing_value") is not None else "bad_value"
    try:
        float(row.value)
    except ValueError:
        return "bad_value"
    return None


def uncounted(row: Row, log: dict[str, Any]) -> str | None:
    if log.get("event_weights") and row.event not in log["event_weights"]:
        return "other_event"
    if log.get("min_value") is not None and value_of(row, log) < log["min_value"]:
        return "below_min_value"
    return None


def value_of(row: Row, log: dict[str, Any]) -> float:
    value = log["missing_value"] if row.value is None else float(row.value)
    return value * log.get("event_weights", {}).get(row.event, 1.0)


def happened(row: Row, place: int, log: dict[str, Any]) -> Happened:
    assert row.user is not None and row.item is not None and row.second is not None
    return Happened(row.user, row.item, int(row.second), value_of(row, log), row.event_id, row.session, place)


Events = list[Happened]


def kept(events: Events, name: str, dropped: Counter[str], rule: Any) -> Events:
    left = [event for event in events if rule(event)]
    dropped[name] += len(events) - len(left)
    return left


def by_user(events: Events) -> dict[str, Events]:
    users: defaultdict[str, Events] = defaultdict(list)
    for event in sorted(events, key=lambda e: e.order):
        users[event.user].append(event)
    return users


def window(events: Events, data: dict[str, Any], dropped: Counter[str]) -> Events:
    rules = data.get("window", {})
    since = moment(rules["since"]) if "since" in rules else None
    until = moment(rules["until"]) if "until" in rules else None
    if "days" in rules and events:
        newest = max(datetime.fromtimestamp(event.second, UTC) for event in events)
        oldest = (newest if until is None else min(newest, until)) - timedelta(days=rules["days"])
        since = oldest if since is None else max(since, oldest)

    def inside(event: Happened) -> bool:
        at = datetime.fromtimestamp(event.second, UTC)
        return (since is None or at >= since) and (until is None or at < until)

    return kept(events, "outside_window", dropped, inside)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def repeated_events(events: Events, data: dict[str, Any], dropped: Counter[str]) -> Events:
    seen: set[tuple[str, str]] = set()

    def new(event: Happened) -> bool:
        if event.event_id is None:
            return True
        key = event.user, event.event_id
        known = key in seen
        seen.add(key)
        return not known

    return kept(events, "repeated_event", dropped, new)


def robots(events: Events, data: dict[str, Any], dropped: Counter[str]) -> Events:
    rules = data.get("robots", {})
    guilty = set()
    for user, own in by_user(events).items():
        in_an_hour = max(sum(0 <= b.second - a.second < 3600 for b in own) for a in own)
        with_an_item = max(Counter(event.item for event in own).values())
        measured = {"max_events": len(own), "max_events_per_hour": in_an_hour, "max_repeats": with_an_item}
        if any(measured[name] > limit for name, limit in rules.items()):
            guilty.add(user)
    return kept(events, "robot_user", dropped, lambda event: event.user not in guilty)


def sessions(events: Events, data: dict[str, Any], dropped: Counter[str]) -> Events:
    gap = data.get("session_gap_s")
    numbered = []
    for own in by_user(events).values():
        labels: dict[Any, int] = {}
        last: int | None = None
        run = 0
        for event in own:
            label: Any = event.named_session
            if label is None and gap is not None:
                run += last is None or event.second - last >= gap
                label, last = run, event.second
            number = None if label is None else labels.setdefault(label, len(labels))
            numbered.append(replace(event, session=number))
    return numbered


def repeated_pairs(events: Events, data: dict[str, Any], dropped: Counter[str]) -> Events:
    repeats = data.get("repeats", "first")
    pairs: defaultdict[tuple[str, str], Events] = defaultdict(list)
    for event in sorted(events, key=lambda e: e.order):
        pairs[event.user, event.item].append(event)
    totals = {"sum": sum, "max": max}
    left = []
    for same in pairs.values():
        one = same[-1] if repeats == "last" else same[0]
        left.append(replace(one, value=totals[repeats](e.value for e in same)) if repeats in totals else one)
    dropped["repeated_pair"] += len(events) - len(left)
    return left


def old_events(events: Events, data: dict[str, Any], dropped: Counter[str]) -> Events:
    most = data.get("window", {}).get("max_events_per_user")
    if most is None:
        return events
    left = [event for own in by_user(events).values() for event in own[-most:]]
    dropped["old_event"] += len(events) - len(left)
    return left


def k_core(events: Events, data: dict[str, Any], dropped: Counter[str]) -> Events:
    before = -1
    while before != len(events):
        before = len(events)
        users = Counter(event.user for event in events)
        events = kept(events, "rare_user", dropped, lambda e, n=users: n[e.user] >= data["min_user_interactions"])
        items = Counter(event.item for event in events)
        events = kept(events, "rare_item", dropped, lambda e, n=items: n[e.item] >= data["min_item_interactions"])
    return events


def splits(events: Events) -> list[str]:
    """Leave one out: the split of each event, in their order."""
    return ["train" if mine > 2 else "validation" if mine == 2 else "test" for mine in from_the_end(events)]


def from_the_end(events: Events) -> list[int]:
    totals, seen = Counter(event.user for event in events), Counter()
    places = []
    for event in events:
        places.append(totals[event.user] - seen[event.user])
        seen[event.user] += 1
    return places
