"""Templates and what they show -> one HTML page that needs nothing else: no script, font, image or style sheet.

Everything that comes from data is escaped: a title may hold any characters. A page's templates may include `page.css`
and import macros from `parts.html`, which all pages share.
"""

from __future__ import annotations

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

__all__ = ["render", "signed"]


def render(package: str, template: str, **shown: Any) -> str:
    """The page that a template in the package's folder `templates` makes of what is shown."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("llmrec_ray.pages")]), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "signed": signed, "count": _count, "plain": _plain}
    return environment.get_template(template).render(**shown)


def signed(value: float) -> str:
    """With a sign, minus as a real minus: +0.0041, −0.0102."""
    return f"{value:+.4f}".replace("-", "−")


def _figure(value: float) -> str:
    return f"{value:.4f}"


def _count(value: int) -> str:
    return f"{value:,}"


def _plain(value: float) -> str:
    return f"{value:g}"
