"""Arguments -> one stage -> people's output on stderr and, with --json, one JSON object as the last line of stdout.

Exit status: 0 done, 1 the stage failed with a message, 2 the command line or recipe is wrong, 130 interrupted,
143 terminated.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from llmrec_ray.cli.arguments import build_parser, check_arguments
from llmrec_ray.cli.verbs import VERBS, compare, import_data
from llmrec_ray.config import Recipe, load_recipe, overridden_workspace, override_recipe
from llmrec_ray.errors import ConfigError, LlmrecError
from llmrec_ray.tune import begun_campaign

__all__ = ["main"]

logger = logging.getLogger("llmrec_ray")


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb and exit the process with its status."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one verb and return its exit status."""
    arguments = build_parser().parse_args(list(argv))
    _log_to_stderr(verbose=arguments.verbose)
    emit = _write_json if arguments.json else _write_nothing
    try:
        check_arguments(arguments)
        if arguments.verb == "data import":
            import_data(arguments, emit)
        elif arguments.verb == "evaluate" and arguments.compare:
            compare(arguments, emit)
        else:
            VERBS[arguments.verb](_recipe(arguments), arguments, emit)
    except LlmrecError as error:
        logger.debug("Traceback:", exc_info=True)
        sys.stderr.write(f"llmrec {arguments.verb}: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130
    return 0


def _recipe(arguments: argparse.Namespace) -> Recipe:
    name = arguments.recipe
    if arguments.verb == "tune" and name is None and arguments.config is None:
        return _recipe_of_campaign(arguments)
    if arguments.verb == "data fetch" and name is None and arguments.config is None:
        name = arguments.dataset
    return load_recipe(name, config=arguments.config, overrides=arguments.overrides)


def _recipe_of_campaign(arguments: argparse.Namespace) -> Recipe:
    """That of the campaign to go on with, with overrides; its Dataset is what --dataset names unless that is given."""
    begun = begun_campaign(arguments.resume, overridden_workspace(arguments.overrides))
    arguments.dataset = arguments.dataset or begun.dataset_uri
    others = [override for override in arguments.overrides if override.partition("=")[0] != "workspace"]
    return override_recipe(begun.recipe, others)


def _write_json(result: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def _write_nothing(result: dict[str, Any]) -> None:
    """Without --json the log on stderr has said it all."""


def _log_to_stderr(*, verbose: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
