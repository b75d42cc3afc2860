"""The argument parser: verbs, their options, and the options that all verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmrec_ray import __version__
from llmrec_ray.config import recipe_names
from llmrec_ray.data import KINDS
from llmrec_ray.errors import ConfigError

__all__ = ["build_parser", "check_arguments"]

BOTH_MODELS = ("model", "model")


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
    demo.add_argument("--tune", action="store_true", help="run a campaign of 4 trials before training")

    data = verbs.add_parser("data", help="Public data sets.", description="Public data sets.")
    data_verbs = data.add_subparsers(dest="data_verb", required=True, metavar="VERB")
    summary = "Fetch a public data set into a recipe's workspace (by default the recipe of the same name)."
    fetch = data_verbs.add_parser("fetch", help=summary, description=summary)
    fetch.add_argument("dataset", choices=["movielens-100k"], help="name of the data set")
    _with_shared_options(fetch, recipe_required=False)
    fetch.set_defaults(verb="data fetch")
    _import_options(data_verbs)

    ingest = verb("ingest", "Behaviour logs and item texts -> a Dataset.")
    ingest.add_argument("--extend", action="store_true", help="read only files that the newest Dataset does not know")
    _artifact_options(verb("embed", "Item texts of a Dataset -> cached text vectors."), "dataset")
    train = verb("train", "A Dataset -> a Bundle, with Ray Train.")
    _artifact_options(train, "dataset")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint of a stopped run")
    _tune_options(verbs)
    _artifact_options(verb("index", "A Bundle -> an Index for retrieval."), "bundle")
    _evaluate_options(verbs)
    publish = verb("publish", "Dataset + Bundle + Index -> the current Release.")
    _artifact_options(publish, "dataset", "bundle", "index")
    publish.add_argument("--rollback", action="store_true", help="point back to the Release before the current one")
    publish.add_argument("--policy", metavar="FILE", help="a policy that `tune --policy-only` found for the bundle")
    _artifact_options(verb("serve", "Serve the current Release over HTTP until interrupted."), "release")
    recommend = verb("recommend", "Recommend in this process, without a server.")
    _artifact_options(recommend, "release")
    recommend.add_argument("--user", help="id of a user")
    recommend.add_argument("--history", nargs="+", metavar="ITEM", help="item ids, oldest first")
    recommend.add_argument("--query", help="what is wanted, in words")
    recommend.add_argument("--profile", help="who this is, in words")
    recommend.add_argument("-k", type=int, default=10, help="length of the list (default 10)")
    forget = verb("forget", "Remove a person from everything that a recipe's workspace holds, and keep them out.")
    forget.add_argument("--user", required=True, metavar="ID", help="id of the user, as the log writes it")
    forget.add_argument(
        "--endpoint", action="append", default=[], metavar="URL",
        help="an endpoint that serves the workspace, whose switch is waited for; by default the recipe's own",
    )
    return parser


def check_arguments(arguments: argparse.Namespace) -> None:
    """Rules between options that the parser does not know. Raises ConfigError."""
    if arguments.verb == "tune":
        _check_tune(arguments)
    if arguments.verb == "publish" and arguments.rollback and arguments.policy:
        raise ConfigError("--rollback takes the policy of the earlier Release: leave out --policy.")
    if arguments.verb != "evaluate":
        return
    given = [f"--{name}" for name in ("recipe", "config", "dataset", "bundle", "index") if getattr(arguments, name)]
    if arguments.compare and (given or arguments.overrides):
        surplus = ", ".join([*given, *arguments.overrides])
        raise ConfigError(f"--compare only reads two evaluations that are there: leave out {surplus}.")
    if not arguments.compare and not (arguments.recipe or arguments.config):
        raise ConfigError("There is no recipe to evaluate: name one with --recipe or --config, or give --compare A B.")
    if not arguments.compare and tuple(arguments.systems) != BOTH_MODELS:
        raise ConfigError("--systems names what --compare A B compares: give both, or neither.")


def _check_tune(arguments: argparse.Namespace) -> None:
    if arguments.policy_only and arguments.resume:
        raise ConfigError("--policy-only trains nothing that could be resumed: leave out --resume.")
    if not (arguments.recipe or arguments.config or arguments.resume):
        resumed = "" if arguments.policy_only else ", or a campaign to go on with by --resume"
        raise ConfigError(f"There is no recipe to tune: name one with --recipe or --config{resumed}.")
    if arguments.bundle and not arguments.policy_only:
        raise ConfigError("A campaign trains its own bundles: leave out --bundle, or search one with --policy-only.")


def _tune_options(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "Search what the recipe's tune section names, with Ray Tune."
    parser = verbs.add_parser("tune", help=summary, description=summary)
    _artifact_options(_with_shared_options(parser, recipe_required=False), "dataset", "bundle")
    parser.add_argument(
        "--resume", metavar="NAME",
        help="go on with a campaign that was stopped, or make it larger; without a recipe, with the one it has",
    )
    parser.add_argument(
        "--policy-only", action="store_true",
        help="train nothing: search what needs no training on stored scores of a bundle, in seconds",
    )


def _import_options(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "Original files of a public data set -> a recipe that reads them where they are."
    parser = verbs.add_parser("import", help=summary, description=summary)
    parser.add_argument("kind", choices=list(KINDS), help="whose files they are")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where they lie, unpacked")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the recipe to write; by default NAME.yaml")
    parser.add_argument("--name", help="name of the recipe; by default that of the data set")
    _with_output_options(parser)
    parser.set_defaults(verb="data import")


def _evaluate_options(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "Rank the test split with pipeline, signals and baselines, or compare two evaluations."
    parser = verbs.add_parser("evaluate", help=summary, description=summary)
    _artifact_options(_with_shared_options(parser, recipe_required=False), "dataset", "bundle", "index")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"),
        help="compare two evaluations by their URIs instead, users paired; several seeds as A1,A2,A3; needs no recipe",
    )
    parser.add_argument(
        "--systems", nargs=2, metavar=("A", "B"), default=BOTH_MODELS,
        help="with --compare, the system of each: model (the default), signal:text, baseline:ease, cold:all, …",
    )


def _with_shared_options(
    parser: argparse.ArgumentParser, *, recipe_required: bool = True
) -> argparse.ArgumentParser:
    source = parser.add_mutually_exclusive_group(required=recipe_required)
    source.add_argument("--recipe", metavar="NAME", help=f"a packaged recipe: {', '.join(recipe_names())}")
    source.add_argument("--config", metavar="FILE", help="a recipe file of your own")
    _with_output_options(parser)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change one key of the recipe")
    return parser


def _with_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="end stdout with one JSON object")
    parser.add_argument("--verbose", action="store_true", help="log details, tracebacks and Ray's own messages")


def _artifact_options(parser: argparse.ArgumentParser, *kinds: str) -> None:
    for kind in kinds:
        parser.add_argument(f"--{kind}", metavar="URI", help=f"the {kind} to use; by default the workspace's newest")
