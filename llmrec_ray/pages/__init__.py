"""What all pages that people read are made with: templates rendered without scripts, and charts as inline SVG."""

from llmrec_ray.pages.charts import Bar, Interval, grouped_bars, interval_chart, line_chart, stacked_bar
from llmrec_ray.pages.render import render, signed

__all__ = ["Bar", "Interval", "grouped_bars", "interval_chart", "line_chart", "render", "signed", "stacked_bar"]
