"""Public data sets in their original files -> recipes that read them where they are."""

from llmrec_ray.data.importers.recipes import KINDS, Imported, import_recipe

__all__ = ["KINDS", "Imported", "import_recipe"]
