"""One extra per role: a stage runs without the libraries of the other roles."""

import subprocess
import sys

import pytest
import yaml

from tests.boards import board_recipe

BLOCK = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} belongs to another role", name=name)
        return None

sys.meta_path.insert(0, Blocker())
"""


def run_without(blocked: set[str], script: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + script], capture_output=True, text=True
    )


def test_the_blocker_blocks():
    assert "torch belongs to another role" in run_without({"torch"}, "import torch").stderr


def test_an_ingest_image_needs_no_torch_deepspeed_fastapi_or_faiss(board_folder, tiny_encoder, tmp_path):
    recipe = board_recipe(board_folder, workspace=str(tmp_path / "work"), encoder={"model": str(tiny_encoder)})
    file = tmp_path / "board.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    result = run_without(
        {"torch", "transformers", "deepspeed", "fastapi", "faiss", "safetensors", "sklearn"},
        f"from llmrec_ray.cli import main; main(['ingest', '--config', {str(file)!r}, '--json'])",
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert '"rows_kept": 800' in result.stdout


@pytest.mark.parametrize("module", ["llmrec_ray.serve.app", "llmrec_ray.serve.replicas", "llmrec_ray.recommend"])
def test_a_serving_image_needs_no_deepspeed_or_scikit_learn(module):
    result = run_without({"deepspeed", "sklearn"}, f"import {module}")
    assert result.returncode == 0, result.stderr[-3000:]
