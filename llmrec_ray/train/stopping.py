"""When to stop: a pure rule over one number per epoch, the same on every worker."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["EarlyStopping"]


@dataclass(frozen=True)
class EarlyStopping:
    """The best value so far and how many epochs have passed without a better one."""

    best: float = float("-inf")
    best_epoch: int = 0
    epochs_without_gain: int = 0

    def seen(self, value: float, epoch: int) -> EarlyStopping:
        """The rule after epoch `epoch` (from 1) scored `value`; higher is better, a tie is no gain."""
        if value > self.best:
            return EarlyStopping(best=value, best_epoch=epoch)
        return replace(self, epochs_without_gain=self.epochs_without_gain + 1)

    def should_stop(self, patience: int) -> bool:
        """Whether `patience` epochs in a row brought nothing."""
        return self.epochs_without_gain >= patience
