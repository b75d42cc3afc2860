"""Removing a person: artifacts without them, and nothing left that still holds them.

`llmrec forget --user ID` writes successors of what is used now, points at these, and deletes the older artifacts, event
lines, checkpoints and rollback targets. What models learnt from everybody together, such as which items go together, is
not taken apart: that changes with the next training, which no longer sees the person.
"""

from llmrec_ray.forget.run import Forgotten, forget

__all__ = ["Forgotten", "forget"]
