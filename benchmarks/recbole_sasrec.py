"""RecBole 1.2.1's stock SASRec training loop on MovieLens-100K, timed over some of its batches.

    python benchmarks/recbole_sasrec.py [batches]

The parent installs RecBole into a folder of its own in the cache, never into this environment; the child, this same
file run as a script, patches what RecBole 1.2.1 needs on today's libraries and runs `Trainer._train_epoch` as it is:
batches of 2,048 examples, one padded sequence per interaction, cross-entropy over the catalogue. Only setting changed:
no sampled negatives, as that loss demands.

Patches: numpy's removed aliases (np.bool, np.float_, …); a stand-in for torch.utils.tensorboard, so that nothing
is logged.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["recbole_examples_per_s"]

REQUIREMENTS = (
    "recbole==1.2.1", "colorama==0.4.6", "tabulate==0.10.0", "texttable==1.7.2", "thop==0.1.1.post2209072238",
)
INSTALL_TIMEOUT_S = 600
ALIASES = {"bool": bool, "int": int, "float": float, "object": object, "str": str, "long": int, "unicode": str}
REMOVED = {"float_": "float64", "complex_": "complex128", "unicode_": "str_", "bool8": "bool_"}


def recbole_examples_per_s(batches: int) -> float:
    """Interactions trained per second on all cores of this machine: median over `batches`, after one to warm up."""
    script = Path(__file__).resolve()
    with tempfile.TemporaryDirectory(prefix="recbole-") as folder:  # it writes logs and checkpoints where it stands
        result = subprocess.run(
            [sys.executable, str(script), str(_installed()), str(batches)], cwd=folder, text=True, capture_output=True
        )
    if result.returncode:
        raise RuntimeError(f"RecBole's loop failed:\n{result.stderr[-2000:]}")
    return float(json.loads(result.stdout.strip().splitlines()[-1])["examples_per_s"])


def _installed() -> Path:
    from llmrec_ray.artifact import cache_folder

    target = cache_folder() / "recbole-1.2.1"
    if not (target / "recbole").is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".staging-") as staging:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{staging}/it"]
            subprocess.run([*command, *REQUIREMENTS], check=True, timeout=INSTALL_TIMEOUT_S)
            Path(staging, "it").rename(target)
    return target


def _child(target: str, batches: int) -> dict[str, float]:
    warnings.simplefilter("ignore")
    _patch()
    sys.path.append(target)
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.sequential_recommender import SASRec
    from recbole.utils import get_trainer, init_seed

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    settings = {"train_neg_sample_args": None, "use_gpu": False, "show_progress": False, "state": "WARNING"}
    config = Config(model="SASRec", dataset="ml-100k", config_dict=settings)
    init_seed(config["seed"], config["reproducibility"])
    train, _, _ = data_preparation(config, create_dataset(config))
    model = SASRec(config, train.dataset)
    timed = _Timed(train, batches + 1)
    get_trainer(config["MODEL_TYPE"], config["model"])(config, model)._train_epoch(timed, 0)
    rates = sorted(examples / seconds for examples, seconds in timed.seen[1:])
    return {"examples_per_s": rates[len(rates) // 2], "batch_size": float(timed.seen[0][0])}


class _Timed:
    """The first batches of a data loader: how many examples each had, and seconds until the next one was there."""

    def __init__(self, loader: Any, batches: int) -> None:
        self._loader, self._batches = loader, batches
        self.seen: list[tuple[int, float]] = []

    def __iter__(self) -> Iterator[Any]:
        started, examples = time.perf_counter(), 0
        for _, batch in zip(range(self._batches + 1), self._loader, strict=False):
            if examples:
                self.seen.append((examples, time.perf_counter() - started))
            started, examples = time.perf_counter(), len(batch)
            if len(self.seen) < self._batches:
                yield batch


def _patch() -> None:
    import numpy as np

    for name, value in {**ALIASES, **{old: getattr(np, new) for old, new in REMOVED.items()}}.items():
        if name not in vars(np):
            setattr(np, name, value)
    stand_in = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = lambda *_, **__: types.SimpleNamespace(add_scalar=lambda *_, **__: None)  # type: ignore[attr-defined]
    sys.modules["torch.utils.tensorboard"] = stand_in


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(_child(sys.argv[1], int(sys.argv[2]))))
    else:
        print(json.dumps({"examples_per_s": recbole_examples_per_s(int(sys.argv[1]) if sys.argv[1:] else 5)}))
