"""The argument parser: verbs, their options, and the options that all verbs share."""

from __future__ import annotations

import argparse

from llmrec_ray import __version__
from llmrec_ray.config import recipe_names

__all__ = ["build_parser"]


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="llmrec", description="From behaviour logs to an autoscaled recommendation endpoint, on Ray."
    )
    parser.add_argument("--version", action="version", version=f"llmrec_ray {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, summary: str) -> argparse.ArgumentParser:
        return _with_shared_options(verbs.add_parser(name, help=summary, description=summary))

    demo = verb("demo", "Run every stage in order on the recipe's data, then serve.")
    demo.add_argument("--no-serve", action="store_true", help="stop after evaluation and publishing")
    demo.add_argument("--tune", action="store_true", help="run the small tuning campaign before training")

    data = verbs.add_parser("data", help="Public data sets.", description="Public data sets.")
    data_verbs = data.add_subparsers(dest="data_verb", required=True, metavar="VERB")
    summary = "Fetch a public data set into a recipe's workspace (by default the recipe of the same name)."
    fetch = data_verbs.add_parser("fetch", help=summary, description=summary)
    fetch.add_argument("dataset", choices=["movielens-100k"], help="name of the data set")
    _with_shared_options(fetch, recipe_required=False)
    fetch.set_defaults(verb="data fetch")

    verb("ingest", "Behaviour logs and item texts -> a Dataset.")
    _artifact_options(verb("embed", "Item texts of a Dataset -> cached text vectors."), "dataset")
    train = verb("train", "A Dataset -> a Bundle, with Ray Train.")
    _artifact_options(train, "dataset")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint of a stopped run")
    _artifact_options(verb("tune", "Search learning rate and fusion weight with Ray Tune."), "dataset")
    _artifact_options(verb("index", "A Bundle -> an Index for retrieval."), "bundle")
    _artifact_options(verb("evaluate", "Rank the test split with pipeline, signals and baselines."),
                      "dataset", "bundle", "index")
    publish = verb("publish", "Dataset + Bundle + Index -> the current Release.")
    _artifact_options(publish, "dataset", "bundle", "index")
    publish.add_argument("--rollback", action="store_true", help="point back to the Release before the current one")
    _artifact_options(verb("serve", "Serve the current Release over HTTP until interrupted."), "release")
    recommend = verb("recommend", "Recommend in this process, without a server.")
    _artifact_options(recommend, "release")
    recommend.add_argument("--user", help="id of a user")
    recommend.add_argument("--history", nargs="+", metavar="ITEM", help="item ids, oldest first")
    recommend.add_argument("--query", help="what is wanted, in words")
    recommend.add_argument("--profile", help="who this is, in words")
    recommend.add_argument("-k", type=int, default=10, help="length of the list (default 10)")
    return parser


def _with_shared_options(
    parser: argparse.ArgumentParser, *, recipe_required: bool = True
) -> argparse.ArgumentParser:
    source = parser.add_mutually_exclusive_group(required=recipe_required)
    source.add_argument("--recipe", metavar="NAME", help=f"a packaged recipe: {', '.join(recipe_names())}")
    source.add_argument("--config", metavar="FILE", help="a recipe file of your own")
    parser.add_argument("--json", action="store_true", help="end stdout with one JSON object")
    parser.add_argument("--verbose", action="store_true", help="log details, tracebacks and Ray's own messages")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change one key of the recipe")
    return parser


def _artifact_options(parser: argparse.ArgumentParser, *kinds: str) -> None:
    for kind in kinds:
        parser.add_argument(f"--{kind}", metavar="URI", help=f"the {kind} to use; by default the workspace's newest")
