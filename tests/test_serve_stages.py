"""What fails or is late is done without and named; the way goes on with what is there."""

from __future__ import annotations

import asyncio
import inspect
import time

import numpy as np
import pytest
from ray.exceptions import RayActorError

from llmrec_ray.config import DeadlineConfig
from llmrec_ray.recommend import Pipeline, Request, RequestBatch
from llmrec_ray.recommend.catalogue import Catalogue
from llmrec_ray.recommend.loading import open_dataset
from llmrec_ray.recommend.popular import PopularItems
from llmrec_ray.serve.stages import Answered, Stages

DEADLINES = DeadlineConfig(encoder_s=0.3, retriever_s=0.3, reranker_s=0.3, rest_s=0.2)


class Handle:
    """Calls a stage in this process as a Serve handle would: at once, with what other calls return as arguments."""

    def __init__(self, **methods) -> None:
        self.calls = 0
        for name, method in methods.items():
            setattr(self, name, Remote(self, method))


class Remote:
    def __init__(self, handle: Handle, method) -> None:
        self.handle, self.method = handle, method

    def remote(self, *arguments):
        self.handle.calls += 1
        return asyncio.ensure_future(self._call(arguments))

    async def _call(self, arguments):
        values = [await asyncio.shield(value) if inspect.isawaitable(value) else value for value in arguments]
        outcome = self.method(*values)
        return await outcome if inspect.isawaitable(outcome) else outcome


def fails(*_):
    raise RuntimeError("the stage is broken")


async def hangs(*_):
    await asyncio.sleep(30)


class DiesOnce:
    """The replica that takes the first call dies; the next call reaches another one."""

    def __init__(self, method) -> None:
        self.method, self.calls = method, 0

    def __call__(self, *arguments):
        self.calls += 1
        if self.calls == 1:
            raise RayActorError
        return self.method(*arguments)


@pytest.fixture(scope="module")
def pipeline(tiny_release) -> Pipeline:
    return Pipeline.of_release(tiny_release)


@pytest.fixture(scope="module")
def popular(tiny_release) -> PopularItems:
    return PopularItems(Catalogue.of(open_dataset(tiny_release)))


def stages_of(pipeline: Pipeline, **broken) -> tuple[Stages, dict[str, Handle]]:
    handles = {
        "encoder": Handle(encode=broken.get("encoder", lambda _, *texts: pipeline.encoder.encode(*texts))),
        "retriever": Handle(retrieve=broken.get("retriever", pipeline.retriever.retrieve)),
        "reranker": Handle(rerank=broken.get("reranker", pipeline.reranker.rerank)),
    }
    return Stages(handles["encoder"], handles["retriever"], handles["reranker"], DEADLINES), handles


def batch_of(pipeline: Pipeline, *requests: Request) -> RequestBatch:
    return pipeline.resolver.resolve(requests, {})


def rank(stages: Stages, batch: RequestBatch, popular: PopularItems) -> Answered:
    return asyncio.run(stages.rank(batch, popular))


KNOWN = Request(user_id="u001", k=5)
ASKING = Request(user_id="u001", query="thing painted white", k=5)


def test_a_known_user_passes_two_stages_and_gets_what_the_pipeline_gives(pipeline, popular):
    stages, handles = stages_of(pipeline)
    answered = rank(stages, batch_of(pipeline, KNOWN, Request(user_id="u002", k=3)), popular)
    assert answered.degraded == ()
    assert [handle.calls for handle in handles.values()] == [0, 1, 1]
    expected = pipeline.recommend([KNOWN, Request(user_id="u002", k=3)])
    rows = [[item_row for item_row in rows if item_row >= 0] for rows in answered.ranked.item_rows.tolist()]
    assert rows == [[pipeline.resolver.item_row(item.item_id) for item in one.items] for one in expected]


@pytest.mark.parametrize("broken", [fails, hangs])
def test_without_the_encoder_texts_are_left_out(pipeline, popular, broken):
    stages, _ = stages_of(pipeline, encoder=broken)
    answered = rank(stages, batch_of(pipeline, ASKING), popular)
    assert answered.degraded == ("encoder",)
    assert not answered.batch.has_text
    plain = rank(stages_of(pipeline)[0], batch_of(pipeline, KNOWN), popular)
    assert np.array_equal(answered.ranked.item_rows, plain.ranked.item_rows)


@pytest.mark.parametrize("broken", [fails, hangs])
def test_without_the_reranker_the_order_of_the_retriever_stands(pipeline, popular, broken):
    stages, _ = stages_of(pipeline, reranker=broken)
    answered = rank(stages, batch_of(pipeline, KNOWN), popular)
    assert answered.degraded == ("reranker",)
    candidates = pipeline.retriever.retrieve(batch_of(pipeline, KNOWN), None).candidates.item_rows
    assert (answered.ranked.item_rows >= 0).sum() == 5
    assert set(answered.ranked.item_rows[0]) <= set(candidates[0])


@pytest.mark.parametrize("broken", [fails, hangs])
def test_without_the_retriever_popular_items_that_pass_the_filters_are_shown(pipeline, popular, broken):
    stages, _ = stages_of(pipeline, retriever=broken)
    filtered = KNOWN.model_copy(update={"filters": KNOWN.filters.model_copy(update={"deny": ["i000", "i002"]})})
    batch = batch_of(pipeline, KNOWN, filtered)
    answered = rank(stages, batch, popular)
    assert answered.degraded == ("retriever",)
    assert answered.ranked.item_rows.shape == (2, 5)
    assert (answered.ranked.item_rows >= 0).all()
    assert not {pipeline.resolver.item_row(one) for one in ("i000", "i002")} & set(answered.ranked.item_rows[1])
    assert not set(batch.histories.item_rows) & set(answered.ranked.item_rows.ravel())


@pytest.mark.parametrize("stage", ["encoder", "retriever", "reranker"])
def test_a_call_that_a_dying_replica_took_with_it_goes_to_another_one(pipeline, popular, stage):
    methods = {
        "encoder": lambda _, *texts: pipeline.encoder.encode(*texts), "retriever": pipeline.retriever.retrieve,
        "reranker": pipeline.reranker.rerank,
    }
    stages, _ = stages_of(pipeline, **{stage: DiesOnce(methods[stage])})
    assert rank(stages, batch_of(pipeline, ASKING), popular).degraded == ()


def test_a_stage_that_hangs_is_waited_for_once_and_then_left_alone_for_a_while(pipeline, popular):
    async def scene():
        stages, handles = stages_of(pipeline, retriever=hangs)
        batch = batch_of(pipeline, KNOWN)
        assert (await stages.rank(batch, popular)).degraded == ("retriever",)
        start = time.monotonic()
        assert (await stages.rank(batch, popular)).degraded == ("retriever",)
        assert time.monotonic() - start < DEADLINES.retriever_s / 2
        assert handles["retriever"].calls == 1

    asyncio.run(scene())


def test_a_stage_that_works_again_is_used_again(pipeline, popular):
    async def scene():
        stages, handles = stages_of(pipeline)
        stages.reranker.failed(RuntimeError("earlier"))
        batch = batch_of(pipeline, KNOWN)
        assert (await stages.rank(batch, popular)).degraded == ("reranker",)
        assert handles["reranker"].calls == 0
        await asyncio.sleep(DEADLINES.rest_s * 1.5)
        assert (await stages.rank(batch, popular)).degraded == ()
        assert (await stages.rank(batch, popular)).degraded == ()

    asyncio.run(scene())
