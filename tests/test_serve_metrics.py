"""The metrics as Ray itself exports them to Prometheus, and the dashboard that shows them."""

from __future__ import annotations

import json
import re
import time
from dataclasses import astuple
from pathlib import Path

import httpx
import pytest
import ray
from ray.util.metrics import Counter, Histogram

from llmrec_ray.serve.metrics import HttpMetrics, StageMetrics, _http_instruments, _stage_instruments

DASHBOARD = Path(__file__).parent.parent / "deploy" / "grafana-dashboard.json"
WAIT_S = 60.0


def exported_names() -> set[str]:
    """Every name that Prometheus sees, as Ray makes them from kinds of metrics."""
    names = set()
    for metric in (*astuple(_stage_instruments()), *astuple(_http_instruments())):
        name = f"ray_{metric.info['name']}"
        if isinstance(metric, Histogram):
            names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
        else:
            names.add(f"{name}_total" if isinstance(metric, Counter) else name)
    return names


def sample(text: str, name: str, **labels: str) -> float | None:
    """The value of the one line of an export with these labels."""
    for line in text.splitlines():
        if line.startswith(f"{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rpartition(" ")[2])
    return None


@ray.remote(num_cpus=0.1)
class Recorder:
    def record(self) -> None:
        stage = StageMetrics("tested")
        for seconds in (0.004, 0.2):
            stage.observe(seconds, 32)
        stage.candidates("neural", 120)
        stage.degraded("source:text")
        stage.queue(7)
        stage.cache(True)
        stage.cache(False)
        stage.cache(False)
        stage.release("first")
        stage.release("second+3")
        HttpMetrics().answered("/tested", 429, 0.001)


def recorded(text: str) -> set[str]:
    """The exported names that the Recorder has given values; other tests' endpoints leave theirs in the same Ray."""
    return {name for name in exported_names()
            if sample(text, name, **({"route": "/tested"} if "_http_" in name else {"stage": "tested"})) is not None}


@pytest.fixture(scope="module")
def exported(ray_session) -> str:
    """What Prometheus would scrape from this node once a process has recorded every metric."""
    recorder = Recorder.remote()
    ray.get(recorder.record.remote())
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline, text = time.monotonic() + WAIT_S, ""
    while missing := exported_names() - recorded(text):
        assert time.monotonic() < deadline, sorted(missing)
        time.sleep(0.5)
        text = httpx.get(url, trust_env=False).text
    ray.kill(recorder)
    return text


def test_calls_are_timed_and_their_sizes_counted(exported):
    assert sample(exported, "ray_llmrec_stage_seconds_count", stage="tested") == 2
    assert sample(exported, "ray_llmrec_stage_seconds_bucket", stage="tested", le="0.005") == 1
    assert sample(exported, "ray_llmrec_stage_requests_total", stage="tested") == 64
    assert sample(exported, "ray_llmrec_stage_batch_size_bucket", stage="tested", le="24.0") == 0
    assert sample(exported, "ray_llmrec_stage_batch_size_bucket", stage="tested", le="32.0") == 2


def test_candidates_caches_queues_and_what_was_done_without_are_counted(exported):
    assert sample(exported, "ray_llmrec_candidates_bucket", stage="tested", source="neural", le="150.0") == 1
    assert sample(exported, "ray_llmrec_candidates_bucket", stage="tested", source="neural", le="100.0") == 0
    assert sample(exported, "ray_llmrec_degraded_total", stage="tested", what="source:text") == 1
    assert sample(exported, "ray_llmrec_queue_length", stage="tested") == 7
    assert sample(exported, "ray_llmrec_cache_lookups_total", stage="tested", result="hit") == 1
    assert sample(exported, "ray_llmrec_cache_lookups_total", stage="tested", result="miss") == 2


def test_a_replica_shows_the_release_it_answers_with_and_no_longer_the_one_before(exported):
    assert sample(exported, "ray_llmrec_release_info", stage="tested", release="first") == 0
    assert sample(exported, "ray_llmrec_release_info", stage="tested", release="second") == 1
    assert sample(exported, "ray_llmrec_item_changes", stage="tested") == 3


def test_answers_are_counted_by_route_and_status(exported):
    assert sample(exported, "ray_llmrec_http_seconds_count", route="/tested", status="429") == 1


def test_labels_hold_nothing_but_what_the_program_names(exported):
    lines = [line for line in exported.splitlines() if line.startswith("ray_llmrec_")]
    keys = {key for line in lines for key in re.findall(r'(\w+)="', line)}
    of_ray = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId", "JobId", "NodeId", "NodeType", "le"}
    ours = {key for key in keys - of_ray if not key.startswith("otel_scope_")}
    assert ours == {"stage", "source", "what", "result", "release", "route", "status"}


def test_the_dashboard_shows_every_metric_that_is_exported_and_no_other():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    shown = {name for query in queries for name in re.findall(r"ray_llmrec_\w+", query)}
    assert shown <= exported_names()
    stems = {re.sub("_(bucket|sum|count|total)$", "", name) for name in exported_names()}
    assert {re.sub("_(bucket|sum|count|total)$", "", name) for name in shown} == stems


def test_panels_have_titles_units_and_places_of_their_own():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    places = set()
    for panel in panels:
        assert panel["title"] and panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24 and (x, y) not in places
                places.add((x, y))
    assert len({panel["title"] for panel in panels}) == len({panel["id"] for panel in panels}) == len(panels)


def test_recording_costs_microseconds_and_needs_no_ray():
    stage = StageMetrics("local")
    start = time.perf_counter()
    for _ in range(2000):
        stage.observe(0.01, 8)
    assert (time.perf_counter() - start) / 2000 < 100e-6
