"""Public data sets in their original form, a few rows of each, as the archives have them.

Every data set has five users who met the same five items, the first and the last of which is described fully.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

__all__ = ["LOG", "START_S", "write_1m", "write_10m", "write_100k", "write_amazon", "write_csv", "write_recbole"]

START_S = 978_300_760
LOG = [(user, item, START_S + 60 * (5 * user + item)) for user in range(1, 6) for item in range(1, 6)]

FILMS_100K = [
    "1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)|0|0|0|1|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0",
    "2|Misérables, Les (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Mis%E9rables%2C%20Les%20%281995%29|"
    "0|0|0|0|0|0|0|0|1|0|0|0|1|0|0|0|0|0|0",
    "3|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0",
    "4|Land Before Time III: The Time of the Great Giving (1995) (V)|01-Jan-1995||http://us.imdb.com/x|"
    "0|0|0|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0",
    "5|Good Man in Africa, A (1994)|01-Jan-1994||http://us.imdb.com/y|0|1|1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0",
]
FILMS_1M = [
    "1::Toy Story (1995)::Animation|Children's|Comedy", "2::Misérables, Les (1995)::Drama|Musical",
    "3::Shanghai Triad (Yao a yao yao dao waipo qiao) (1995)::Drama", "4::Waiting to Exhale (1995)::Comedy|Drama",
    "5::2 ou 3 choses que je sais d'elle (2 or 3 Things I Know About Her) (1967)::Drama",
]
FILMS_10M = [
    "1::Toy Story (1995)::Adventure|Animation|Children|Comedy|Fantasy", "2::Misérables, Les (1995)::Drama|War",
    '3::"Great Performances" Cats (1998)::Musical', "4::Waiting to Exhale (1995)::Comedy|Drama|Romance",
    "5::Pull My Daisy (1958)::(no genres listed)",
]
FILMS_CSV = [
    "1,Toy Story (1995),Adventure|Animation|Children|Comedy|Fantasy", '2,"Misérables, Les (1995)",Drama|War',
    '3,"""Great Performances"" Cats (1998)",Musical', '4,"Fawlty Towers (1975-1979) ",Comedy',
    "5,Pull My Daisy,(no genres listed)",
]


def write_100k(folder: Path) -> None:
    """As ml-100k.zip: tabs, bars and Latin-1, no header anywhere."""
    people = ["1|24|M|technician|85711", "2|53|F|other|94043", "3|23|M|writer|32067", "4|24|M|technician|43537",
              "5|33|F|other|15213"]
    _write(folder / "u.data", [f"{u}\t{i}\t{1 + (u + i) % 5}\t{t}" for u, i, t in LOG])
    _write(folder / "u.item", [*FILMS_100K, ""], encoding="latin-1")
    _write(folder / "u.user", people)
    _write(folder / "u.genre", ["unknown|0", "Action|1"])
    _write(folder / "ua.base", ["1\t1\t5\t874965758"])


def write_1m(folder: Path) -> None:
    """As ml-1m.zip: two colons between the fields, Latin-1, codes for ages and occupations."""
    people = ["1::F::1::10::48067", "2::M::56::16::70072", "3::M::25::15::55117", "4::M::45::7::02460",
              "5::M::25::0::55455"]
    _write(folder / "ratings.dat", [f"{u}::{i}::{1 + (u + i) % 5}::{t}" for u, i, t in LOG])
    _write(folder / "movies.dat", FILMS_1M, encoding="latin-1")
    _write(folder / "users.dat", people)
    _write(folder / "README", ["SUMMARY"])


def write_10m(folder: Path) -> None:
    """As ml-10m.zip: half stars, UTF-8, quotation marks that mean nothing, no users."""
    _write(folder / "ratings.dat", [f"{u}::{i}::{0.5 + (u + i) % 5:g}::{t}" for u, i, t in LOG])
    _write(folder / "movies.dat", FILMS_10M)
    _write(folder / "tags.dat", ["15::4973::excellent!::1215184630"])


def write_csv(folder: Path) -> None:
    """As ml-20m.zip, ml-25m.zip, ml-32m.zip and ml-latest.zip, with the line ends that some have."""
    _write(folder / "ratings.csv", ["userId,movieId,rating,timestamp", *(f"{u},{i},4.5,{t}" for u, i, t in LOG)],
           end="\r\n")
    _write(folder / "movies.csv", ["movieId,title,genres", *FILMS_CSV], end="\r\n")
    _write(folder / "links.csv", ["movieId,imdbId,tmdbId", "1,0114709,862"])
    _write(folder / "tags.csv", ["userId,movieId,tag,timestamp", "3,260,classic,1439472355"])


def write_amazon(folder: Path, category: str, *, packed: bool = True, first_item: int = 1) -> None:
    """As the raw files of Amazon Reviews 2023: JSON lines with lists, objects and nulls, times in milliseconds."""
    reviews = [_review(f"AE{u:03}", f"B0{first_item + i - 1:03}", t) for u, i, t in LOG]
    items = [_item(f"B0{first_item + place:03}", f"{category} thing {first_item + place}", full=place != 2)
             for place in range(5)]
    ending = ".jsonl.gz" if packed else ".jsonl"
    _write(folder / f"{category}{ending}", [json.dumps(review) for review in reviews])
    _write(folder / f"meta_{category}{ending}", [json.dumps(item) for item in items])


def write_recbole(folder: Path, name: str = "ml-100k") -> None:
    """As RecBole's atomic files: a type in every name of the header, tabs, several words to a field."""
    _write(folder / f"{name}.inter", ["user_id:token\titem_id:token\trating:float\ttimestamp:float",
                                      *(f"{u}\t{i}\t3\t{t}" for u, i, t in LOG)])
    films = ["1\tToy Story\t1995\tAnimation Children's Comedy", "2\tMisérables, Les\t1995\tDrama Musical",
             '3\t"Great Performances" Cats\t1998\tMusical', "4\tWaiting to Exhale\tV\tComedy", "5\t\t1967\t"]
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"
    _write(folder / f"{name}.item", [header, *films])
    people = ["1\t24\tM\ttechnician\t85711", "2\t53\tF\tother\t94043", "3\t23\tM\twriter\t32067"]
    header = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"
    _write(folder / f"{name}.user", [header, *people])


def _review(user: str, item: str, time_s: int) -> dict:
    return {
        "rating": 5.0, "title": "Such a lovely scent", "text": "Light and not overpowering.<br />Would buy again.",
        "images": [], "asin": item[:-1] + "X", "parent_asin": item, "user_id": user, "timestamp": time_s * 1000 + 923,
        "helpful_vote": 0, "verified_purchase": True,
    }


def _item(item: str, title: str, *, full: bool) -> dict:
    return {
        "main_category": "All Beauty", "title": title, "average_rating": 4.8, "rating_number": 10,
        "features": ["Soft", "Vegan"] if full else [], "description": ["A thing.", "For hair."] if full else [],
        "price": 12.99 if full else None, "images": [{"thumb": "https://x/1.jpg", "variant": "MAIN"}], "videos": [],
        "store": "Howard Products" if full else None, "categories": ["Beauty", "Hair Care"] if full else [],
        "details": {"Package Dimensions": "7.1 x 5.5 x 3 inches", "UPC": "617390882781"}, "parent_asin": item,
        "bought_together": None,
    }


def _write(path: Path, lines: list[str], *, encoding: str = "utf-8", end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = "".join(line + end for line in lines).encode(encoding)
    path.write_bytes(gzip.compress(payload) if path.suffix == ".gz" else payload)
