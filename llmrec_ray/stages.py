"""The stages as functions: each takes a recipe and the noun before it, and returns the noun it made.

Every stage finds its inputs by URI or as the newest in the recipe's workspace, and leaves a pointer to what it
made there. The command line and the demo call only these. A stage imports what it needs when it is called, so that
an image with the extras of one role runs that role's stages.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from llmrec_ray.artifact import Artifact, Workspace, cache_folder
from llmrec_ray.cluster import connected
from llmrec_ray.config import Recipe, with_settings
from llmrec_ray.data import Dataset, Imported, fetch, import_recipe, ingest, latest_dataset, needs_ray
from llmrec_ray.errors import ConfigError, DataError
from llmrec_ray.types import FloatArray

if TYPE_CHECKING:
    from llmrec_ray.bundle import Bundle
    from llmrec_ray.evaluate import Comparison, Evaluation
    from llmrec_ray.forget import Forgotten
    from llmrec_ray.policy import PolicyFound
    from llmrec_ray.recommend import Request, Response
    from llmrec_ray.release import Release
    from llmrec_ray.serve import Endpoint

__all__ = [
    "announce",
    "compare_stage",
    "embed_stage",
    "evaluate_stage",
    "fetch_stage",
    "forget_stage",
    "import_stage",
    "index_stage",
    "ingest_stage",
    "open_bundle",
    "open_dataset",
    "policy_stage",
    "publish_stage",
    "ray_for",
    "recommend_stage",
    "rollback_stage",
    "serve_stage",
    "train_stage",
    "tune_stage",
    "tuned_recipe",
]

logger = logging.getLogger(__name__)


def ray_for(recipe: Recipe, *, dashboard: bool = False) -> AbstractContextManager[None]:
    """The Ray that a recipe's stages use: connected already, named by RAY_ADDRESS, or started here."""
    return connected(recipe.num_cpus, dashboard=dashboard)


def fetch_stage(recipe: Recipe) -> Path:
    """Bring the recipe's public data set into the workspace. Raises ConfigError when it names none."""
    if recipe.data.fetch is None:
        raise ConfigError(
            f"The recipe {recipe.name} names no public data set in data.fetch, so there is nothing to fetch."
        )
    folder = fetch(recipe.data.fetch, _raw_folder(recipe))
    logger.info("%s is in %s", recipe.data.fetch, folder)
    return folder


def import_stage(kind: str, folder: Path, *, out: Path | None = None, name: str | None = None) -> Imported:
    """Original files of a public data set -> a recipe file that reads them where they are."""
    imported = import_recipe(kind, folder, out=out, name=name)
    tables = "; ".join(f"{table} from {', '.join(files)}" for table, files in imported.files.items())
    logger.info("%s: %s", imported.form, tables)
    logger.info("The recipe is %s. Next: llmrec ingest --config %s", imported.recipe, imported.recipe)
    return imported


def ingest_stage(recipe: Recipe, *, extend: bool = False) -> Artifact:
    """Raw files -> a Dataset, on Ray when they are large; with `extend` from the newest one and new files alone."""
    raw_folder, workspace = _raw_folder(recipe), _workspace(recipe)
    known = latest_dataset(workspace) if extend else None
    large = needs_ray(recipe.data, raw_folder, workspace, extend=extend)
    with ray_for(recipe) if large else nullcontext():
        artifact = ingest(recipe, raw_folder, workspace, use_ray=large, extend=extend)
    if artifact.uri == known:
        logger.info("nothing new: the newest Dataset was made of these files and this recipe")
    metrics = artifact.manifest.metrics
    dropped = ", ".join(f"{count} {name}" for name, count in metrics["rows_dropped_by_filter"].items() if count)
    logger.info(
        "dataset %s: %d users, %d items, %d of %d events kept, %d quarantined, dropped: %s", artifact.id,
        metrics["users"], metrics["items"], metrics["rows_kept"], metrics["rows_read"], metrics["rows_quarantined"],
        dropped or "none",
    )
    return artifact


def embed_stage(recipe: Recipe, dataset_uri: str | None = None) -> FloatArray:
    """Raw text vectors of a Dataset's items, [N, T] float32, computed or from the cache. Raises DataError.

    They are for training and for the catalogue, so they are not quantised: `encoder.precision: int8` is for queries.
    """
    from llmrec_ray.embed import embed

    if not recipe.data.items:
        raise DataError(f"The recipe {recipe.name} has no item texts to embed: describe data.items, or go on to train.")
    dataset, encoder = open_dataset(recipe, dataset_uri), recipe.encoder
    if encoder.precision == "int8":
        encoder = encoder.model_copy(update={"precision": "fp32"})
    with ray_for(recipe):
        return embed(dataset.item_texts, encoder, _workspace(recipe), ids=[*dataset.items])


def tune_stage(recipe: Recipe, dataset_uri: str | None = None, *, resume: str | None = None) -> Artifact:
    """A Dataset -> a Campaign: what `tune.search` says is searched, and the winner; or on with the one named."""
    from llmrec_ray.tune import best_overrides, tune

    dataset = open_dataset(recipe, dataset_uri)
    with ray_for(recipe):
        campaign = tune(recipe, dataset, _workspace(recipe), resume=resume)
    metrics = campaign.manifest.metrics
    finals = metrics["finals"]
    logger.info(
        "campaign %s: of %d trials number %d is the winner, in the search %s %.4f%s; its settings: %s", metrics["name"],
        metrics["trials"], metrics["winner"], metrics["metric"], metrics["value"],
        "" if finals is None or finals["value"] is None else f", as a finalist {finals['value']:.4f} as served",
        ", ".join(best_overrides(campaign)),
    )
    logger.info("The report is %s/report.html, the recipe of the winner %s/best.yaml", campaign.uri, campaign.uri)
    return campaign


def policy_stage(
    recipe: Recipe, dataset_uri: str | None = None, bundle_uri: str | None = None
) -> tuple[PolicyFound, str]:
    """What of `tune.search` needs no training, searched on a Bundle that is there; and the file to publish it from."""
    from llmrec_ray.policy import check_bundle, keep_policy, search_policy
    from llmrec_ray.tune.space import split_levels

    dataset, bundle = open_dataset(recipe, dataset_uri), open_bundle(recipe, bundle_uri)
    check_bundle(recipe, dataset, bundle)
    _, domains = split_levels(recipe)
    found = search_policy(
        recipe, dataset, bundle, domains, metric=recipe.tune.metric, tolerance=recipe.tune.policy_tolerance
    )
    uri = keep_policy(_workspace(recipe), bundle, found)
    logger.info("To serve it with the newest index: llmrec publish, with the same recipe and --policy %s", uri)
    return found, uri


def tuned_recipe(recipe: Recipe, campaign: Artifact) -> Recipe:
    """The recipe with the winner's settings."""
    return with_settings(recipe, campaign.manifest.metrics["settings"])


def train_stage(recipe: Recipe, dataset_uri: str | None = None, *, resume: bool = False) -> Artifact:
    """A Dataset -> a Bundle, from nothing or from the Bundle that `train.warm_start` names."""
    from llmrec_ray.train import open_start, train_bundle, with_encoder_of

    dataset, start = open_dataset(recipe, dataset_uri), open_start(recipe)
    with ray_for(recipe):
        raw_text = None if not recipe.data.items else embed_stage(with_encoder_of(recipe, start), dataset.uri)
        artifact = train_bundle(recipe, dataset, raw_text, _workspace(recipe), start=start, resume=resume)
    logger.info("bundle %s: %s", artifact.id, artifact.uri)
    return artifact


def index_stage(recipe: Recipe, bundle_uri: str | None = None) -> Artifact:
    """A Bundle -> an Index."""
    from llmrec_ray.index import build_index

    workspace = _workspace(recipe)
    artifact = build_index(open_bundle(recipe, bundle_uri), recipe.index, workspace.root("index"))
    workspace.set_latest("index", artifact.uri)
    logger.info("index %s: %s over %d items", artifact.id, recipe.index.kind, artifact.manifest.metrics["items"])
    return artifact


def evaluate_stage(
    recipe: Recipe, dataset_uri: str | None = None, bundle_uri: str | None = None, index_uri: str | None = None
) -> Evaluation:
    """Score the test split with the pipeline that would be served, its signals and the baselines."""
    from llmrec_ray.evaluate import evaluate
    from llmrec_ray.index import Index
    from llmrec_ray.recommend import Pipeline

    dataset, bundle = open_dataset(recipe, dataset_uri), open_bundle(recipe, bundle_uri)
    pipeline = Pipeline(dataset, bundle, Index.load(index_uri or _latest_index(recipe)))
    with nullcontext() if recipe.evaluate.num_workers == 1 else ray_for(recipe):
        return evaluate(recipe, dataset, bundle, pipeline, _workspace(recipe))


def compare_stage(a: Sequence[str], b: Sequence[str], systems: tuple[str, str]) -> Comparison:
    """Compare a system of the evaluations at URIs `a`, one per seed, with one of those at `b`, and show the table."""
    from llmrec_ray.evaluate import compare

    comparison = compare(a, b, systems)
    logger.info("%s", comparison.table())
    return comparison


def publish_stage(
    recipe: Recipe, dataset_uri: str | None = None, bundle_uri: str | None = None, index_uri: str | None = None, *,
    policy_uri: str | None = None,
) -> Release:
    """Name a Dataset, a Bundle and an Index as the current Release.

    Its fusion policy is the one that `policy_stage` kept at `policy_uri`; or has the weights of the Bundle and what the
    recipe says now, such as fusion.cold_scale.
    """
    from llmrec_ray.policy import load_policy, policy_of
    from llmrec_ray.release import publish

    workspace = _workspace(recipe)
    bundle = open_bundle(recipe, bundle_uri)
    release = publish(
        workspace,
        name=recipe.name,
        dataset_uri=dataset_uri or workspace.latest("dataset", made_by="ingest"),
        bundle_uri=bundle.uri,
        index_uri=index_uri or _latest_index(recipe),
        policy=policy_of(recipe, bundle) if policy_uri is None else load_policy(policy_uri, bundle),
    )
    logger.info("release %s is current", release.id)
    return release


def rollback_stage(recipe: Recipe) -> Release:
    """Point back to the Release before the current one."""
    from llmrec_ray.release import rollback

    release = rollback(_workspace(recipe))
    logger.info("release %s is current again", release.id)
    return release


def forget_stage(recipe: Recipe, user_id: str, endpoints: Sequence[str] = ()) -> Forgotten:
    """Remove a person from the workspace; endpoints that serve it, by default the recipe's own, follow.

    Raises DataError when nothing names the person, ArtifactError and EventLogError when something could not be done.
    """
    from llmrec_ray.forget import forget

    urls = endpoints or [f"http://{recipe.serve.host}:{recipe.serve.port}"]
    forgotten = forget(recipe, user_id, _workspace(recipe), _raw_folder(recipe), endpoints=urls)
    logger.info(
        "%s: in %s %d artifacts replaced, %d places deleted, %d lines of event logs removed", forgotten.tombstone,
        recipe.workspace, len(forgotten.replaced), len(forgotten.deleted), forgotten.event_lines,
    )
    for file, rows in forgotten.left.items():
        logger.info("Left to you, since the file is yours: %d rows of %s; the next ingest leaves them out.", rows, file)
    return forgotten


@contextmanager
def serve_stage(recipe: Recipe, release_uri: str | None = None) -> Iterator[Endpoint]:
    """A Release behind HTTP for the length of the block."""
    from llmrec_ray.release import current_uri, load_release
    from llmrec_ray.serve import start

    uri = release_uri or current_uri(_workspace(recipe))
    load_release(uri)
    events = _workspace(recipe).local_folder("events")
    with ray_for(recipe, dashboard=True), start(recipe.serve, uri, str(events)) as endpoint:
        yield endpoint


def recommend_stage(recipe: Recipe, request: Request, release_uri: str | None = None) -> Response:
    """Answer one request in this process. Raises RequestError."""
    from llmrec_ray.recommend import Pipeline
    from llmrec_ray.release import current_uri, load_release

    release = load_release(release_uri or current_uri(_workspace(recipe)))
    [response] = Pipeline.of_release(release, limits=recipe.serve.limits).recommend([request])
    return response


def announce(endpoint: Endpoint) -> None:
    """Say where the endpoint listens, with its key and a command to paste."""
    logger.info("The endpoint listens at %s (documentation: %s/docs).", endpoint.url, endpoint.url)
    given = "those of serve.keys" if endpoint.api_key is None else "the one in LLMREC_API_KEY"
    logger.info("API key: %s", given if endpoint.key_from_environment else endpoint.api_key)
    if endpoint.made_admin_key:
        logger.info("Admin key (for /v1/admin): %s", endpoint.admin_key)
    logger.info("Try: %s", endpoint.curl({"query": "a space adventure for children", "k": 5}))
    logger.info("Ctrl-C stops it.")


def open_dataset(recipe: Recipe, uri: str | None = None) -> Dataset:
    """The Dataset at `uri`, or the workspace's newest."""
    return Dataset.open(uri or _workspace(recipe).latest("dataset", made_by="ingest"))


def open_bundle(recipe: Recipe, uri: str | None = None) -> Bundle:
    """The Bundle at `uri`, or the workspace's newest."""
    from llmrec_ray.bundle import Bundle

    return Bundle.open(uri or _workspace(recipe).latest("bundle", made_by="train"))


def _latest_index(recipe: Recipe) -> str:
    return _workspace(recipe).latest("index", made_by="index")


def _workspace(recipe: Recipe) -> Workspace:
    return Workspace(recipe.workspace)


def _raw_folder(recipe: Recipe) -> Path:
    workspace = _workspace(recipe)
    return workspace.local_folder("raw", make=False) if workspace.is_local else cache_folder() / "raw"
