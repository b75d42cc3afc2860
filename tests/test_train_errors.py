"""What goes wrong in training ends soon, in one clean sentence, and leaves nothing half-written."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import pytest
import ray
import ray.cloudpickle

from llmrec_ray.errors import ModelSourceError, TrainingError
from llmrec_ray.model import Windows
from llmrec_ray.train import TrainingInputs, run_training
from tests.train_boards import deterministic_recipe, inputs_of_board

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import tests
MOST_SECONDS = 60


@dataclass(frozen=True)
class FaultInOneWorker(TrainingInputs):
    """Inputs that only rank 1 cannot read, while rank 0 waits for it."""

    fault: Exception | None = None

    def windows(self, recipe) -> Windows:
        if ray.train.get_context().get_world_rank() == 1:
            raise self.fault
        return super().windows(recipe)


def faulty(fault: Exception) -> FaultInOneWorker:
    return FaultInOneWorker(**vars(inputs_of_board()), fault=fault)


@pytest.mark.parametrize(("fault", "raised", "said"), [
    (ModelSourceError("There is no folder /models/e5."), ModelSourceError, r"^There is no folder /models/e5\.$"),
    (ZeroDivisionError("division by zero"), TrainingError,
     r"^Training failed after 0 restarts \(train\.max_failures\): worker 1: ZeroDivisionError: division by zero\. "
     r"What was done is kept in .*/run: go on with --resume\.$"),
], ids=["explained", "unexpected"])
def test_an_error_in_one_worker_ends_all_while_another_waits_for_it(tmp_path, ray_session, fault, raised, said):
    failures = 3 if raised is ModelSourceError else 0
    started = time.monotonic()
    with pytest.raises(raised, match=said):
        run_training(deterministic_recipe(max_failures=failures), faulty(fault), str(tmp_path / "run"))
    assert time.monotonic() - started < MOST_SECONDS
