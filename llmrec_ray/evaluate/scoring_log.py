"""The log of looks at the test split: one JSON line per scoring, so that selection on test cannot hide.

In a local workspace it is the file `evaluations.jsonl`; an object store cannot append, so there each line is
an object of its own below `evaluations-log/`.
"""

from __future__ import annotations

import json
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmrec_ray.artifact import Artifact, Workspace
from llmrec_ray.evaluate.report import Evaluation
from llmrec_ray.storage import file_names, read_json, write_json_atomic

__all__ = ["log_scoring", "scorings"]

LOG_FILE, LOG_FOLDER = "evaluations.jsonl", "evaluations-log"


def log_scoring(workspace: Workspace, evaluation: Evaluation, artifact: Artifact) -> None:
    """Append one line, durable before this returns."""
    line = _line(evaluation, artifact)
    if _is_remote(workspace):
        write_json_atomic(f"{workspace.uri}/{LOG_FOLDER}/{line['time']}-{uuid.uuid4().hex[:8]}.json", line)
        return
    _append(workspace.local_folder(".") / LOG_FILE, json.dumps(line, sort_keys=True) + "\n")


def scorings(workspace: Workspace) -> list[dict[str, Any]]:
    """Every look that was logged, oldest first: time, protocol_hash, recipe, seed, dataset, bundle, evaluation, …"""
    if _is_remote(workspace):
        folder = f"{workspace.uri}/{LOG_FOLDER}"
        return [read_json(f"{folder}/{name}") for name in file_names(folder)]
    file = workspace.local_folder(".", make=False) / LOG_FILE
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _is_remote(workspace: Workspace) -> bool:
    return "://" in workspace.uri and not workspace.uri.startswith("file://")


def _line(evaluation: Evaluation, artifact: Artifact) -> dict[str, Any]:
    k = evaluation.main_k
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "split": evaluation.split,
        "protocol": evaluation.protocol.partition(":")[0],
        "protocol_hash": evaluation.protocol_hash,
        "recipe": evaluation.recipe,
        "seed": evaluation.seed,
        "dataset": evaluation.dataset,
        "bundle": evaluation.bundle,
        "evaluation": artifact.id,
        "git_commit": artifact.manifest.git_commit,
        "model": {name: evaluation.model[name] for name in (f"ndcg@{k}", f"hr@{k}")},
    }


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
