"""The training step: gradients reach what should learn, no split over workers matters, boards are learnt."""

import numpy as np
import pytest
import torch

from llmrec_ray.config import ModelConfig, TrainConfig
from llmrec_ray.model import (
    FrozenText,
    FusionRecommender,
    TrainingModule,
    WindowBatch,
    catalogue_vectors,
    make_windows,
    ncf,
    user_matrix,
)
from llmrec_ray.model.losses import make_loss
from llmrec_ray.model.negatives import make_sampler
from llmrec_ray.ranking import mask_seen, target_ranks
from llmrec_ray.types import Histories

N_USERS = N_ITEMS = 40
CONFIG = ModelConfig(embedding_size=16, history_length=10, ncf_hidden=(16,))
TRANSFORMER = CONFIG.model_copy(update={"user_tower": "transformer", "dropout": 0.1})
SETTINGS = {"seed": 0, "batch_size": 16, "negatives": 16}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def board(seed: int = 0) -> tuple[Histories, np.ndarray]:
    """Users like exactly the items of their colour, in any order: all but the last one, and the last."""
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(np.arange(user % 2, N_ITEMS, 2)) for user in range(N_USERS)]
    histories = Histories.from_lists([order[:-1] for order in orders], list(range(N_USERS)))
    return histories, np.array([order[-1] for order in orders])


def colours() -> np.ndarray:
    """[N_ITEMS, 6] text vectors that tell the colour and something else."""
    noise = np.random.default_rng(0).normal(size=(N_ITEMS, 5))
    vectors = np.column_stack([3.0 - 6.0 * (np.arange(N_ITEMS) % 2), noise])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def module(item_vector: str = "feature", config: ModelConfig = CONFIG, seed: int = 0) -> TrainingModule:
    torch.manual_seed(seed)
    text = None if item_vector == "id" else colours()
    model = FusionRecommender(config, item_vector, N_USERS, N_ITEMS, None if text is None else text.shape[1])
    return TrainingModule(model, None if text is None else FrozenText(text))


def first_batch(histories: Histories) -> WindowBatch:
    [batch] = next(make_windows(histories, CONFIG.history_length).epoch(0, **SETTINGS))
    return batch


def train(step: TrainingModule, histories: Histories, epochs: int, sampler=None, windows=None) -> list[float]:
    windows = windows or make_windows(histories, CONFIG.history_length, sampler)
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-2)
    losses = []
    for epoch in range(epochs):
        step.train()
        for [batch] in windows.epoch(epoch, **SETTINGS):
            loss = step(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def colour_ndcg(scores: np.ndarray, histories: Histories) -> float:
    """NDCG@10 against all items of the user's colour: the board's own definition of what is right."""
    top = np.argsort(-scores, axis=1)[:, :10]
    right = (top % 2) == (np.arange(len(histories)) % 2)[:, None]
    return float(
        (right / np.log2(np.arange(10) + 2)).sum(axis=1).mean() / (1 / np.log2(np.arange(10) + 2)).sum()
    )


@pytest.mark.parametrize(("item_vector", "config"), [
    ("feature", CONFIG), ("id", CONFIG), ("text", CONFIG), ("feature", TRANSFORMER),
    *[("feature", CONFIG.model_copy(update={"ncf_head": head})) for head in ("gmf", "mlp")],
])
def test_a_checkerboard_is_learnt_by_both_heads(item_vector, config):
    histories, _ = board()
    step = module(item_vector, config)
    train(step, histories, epochs=12)
    catalogue = catalogue_vectors(step.model, colours())
    users = user_matrix(step.model, catalogue, histories)
    everything = np.tile(np.arange(N_ITEMS), (N_USERS, 1))
    assert colour_ndcg(users @ catalogue.T, histories) > 0.9
    assert colour_ndcg(ncf(step.model, users, catalogue, everything), histories) > 0.9


def test_the_held_out_item_of_a_checkerboard_is_the_only_one_left_of_its_colour_and_found():
    histories, targets = board()
    step = module()
    train(step, histories, epochs=12)
    catalogue = catalogue_vectors(step.model, colours())
    scores = mask_seen(user_matrix(step.model, catalogue, histories) @ catalogue.T, histories)
    ranks = target_ranks(scores, targets)
    assert np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean() > 0.9


def test_the_loss_falls_and_repeats_exactly_under_a_seed():
    histories, _ = board()
    first = train(module(seed=5), histories, epochs=3)
    assert first == train(module(seed=5), histories, epochs=3)
    assert first != train(module(seed=6), histories, epochs=3)
    assert np.mean(first[-5:]) < np.mean(first[:5])


@pytest.mark.parametrize("config", [CONFIG, TRANSFORMER], ids=["decayed means", "transformer"])
def test_gradients_reach_every_parameter_and_the_text_table_has_none(config):
    step = module(config=config)
    step(first_batch(board()[0])).backward()
    without = [name for name, p in step.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert without == []
    assert not any("table" in name for name in step.state_dict())


def test_gradients_reach_a_text_source_that_learns():
    class Learning(torch.nn.Embedding):
        def forward(self, batch: WindowBatch) -> torch.Tensor:
            return super().forward(batch.rows)

    learner = Learning(N_ITEMS, 6)
    model = FusionRecommender(CONFIG, "feature", N_USERS, N_ITEMS, 6)
    TrainingModule(model, learner)(first_batch(board()[0])).backward()
    assert learner.weight.grad is not None
    assert learner.weight.grad.abs().sum() > 0


def test_the_ncf_head_does_not_pull_on_the_towers():
    step = module(config=CONFIG.model_copy(update={"dropout": 0.0}))
    batch = first_batch(board()[0])
    gradients = []
    for negatives in (0, 16):
        step.zero_grad()
        step.ncf_negatives = negatives
        step(batch).backward()
        gradients.append({name: p.grad.clone() for name, p in step.model.users.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=0, rtol=0)


@pytest.mark.parametrize(("world_size", "config"), [(2, CONFIG), (3, CONFIG), (5, CONFIG), (3, TRANSFORMER)])
def test_gradients_averaged_over_workers_equal_those_of_one(world_size, config):
    windows = make_windows(board()[0], 10)
    step = module(config=config.model_copy(update={"dropout": 0.0, "id_dropout": 0.5}))

    def gradients(rank: int, world: int) -> list[dict[str, torch.Tensor]]:
        found = []
        for [batch] in windows.epoch(0, **SETTINGS, rank=rank, world_size=world):
            step.zero_grad()
            step(batch).backward()
            found.append({name: p.grad.clone() for name, p in step.named_parameters()})
        return found

    shares = [gradients(rank, world_size) for rank in range(world_size)]
    for number, alone in enumerate(gradients(0, 1)):
        for name, expected in alone.items():
            mean = torch.stack([share[number][name] for share in shares]).mean(dim=0)
            torch.testing.assert_close(mean, expected, atol=1e-6, rtol=1e-4)


def test_hard_negatives_count_only_where_they_score_below_the_target_by_a_margin():
    """With the margin at its largest none counts; at its smallest all do but a position's own target."""
    histories = board()[0]
    pool = np.tile(np.arange(N_ITEMS), (N_USERS, 1))
    [batch] = next(make_windows(histories, 10).epoch(0, **SETTINGS, hard=(pool, 5)))
    plain = first_batch(histories)
    step = module(config=CONFIG.model_copy(update={"dropout": 0.0, "id_dropout": 0.0}))
    losses = {}
    for margin in (-1e9, 0.0, 1e9):
        step.hard_margin = margin
        losses[margin] = step(batch).item()
    assert losses[1e9] == pytest.approx(step(plain).item(), rel=1e-5)
    assert losses[1e9] < losses[0.0] < losses[-1e9]


def test_the_correction_lowers_the_scores_of_popular_items_by_what_they_are_drawn():
    histories = board()[0]
    batch, config = first_batch(histories), CONFIG.model_copy(update={"dropout": 0.0, "id_dropout": 0.0})
    step, corrected = module("id", config), module("id", config)
    log_q = torch.linspace(-5, -1, N_ITEMS)
    corrected.register_buffer("log_q_N", log_q, persistent=False)
    with torch.no_grad():
        step.model.items.biases.weight.sub_(log_q)
    for ncf_head in (step.model.ncf, corrected.model.ncf):
        torch.nn.init.zeros_(ncf_head.product.weight)
        torch.nn.init.zeros_(ncf_head.join.weight)
    some, negatives = batch.rows[batch.targets[batch.head_targets]], batch.rows[batch.negatives]
    others = (-log_q[negatives]).expand(len(some), -1).masked_fill(some[:, None] == negatives, -torch.inf)
    logits = torch.cat([-log_q[some][:, None], others], dim=1)
    plain = torch.log1p((some[:, None] != negatives).sum(dim=1).float())
    by_head = 4 * (torch.logsumexp(logits, dim=1) + log_q[some] - plain).sum() / len(batch.targets)
    torch.testing.assert_close(corrected(batch), step(batch) + by_head)


@pytest.mark.parametrize("settings", [
    {"loss": "full_softmax"}, {"loss": "bpr"}, {"loss": "bce"}, {"loss": "focal"}, {"negative_sampling": "popularity"},
    {"negative_sampling": "in_batch"}, {"negative_sampling": "in_batch", "loss": "bpr"},
])
def test_a_checkerboard_is_learnt_with_every_loss_and_sampling(settings):
    histories, _ = board()
    train_config = TrainConfig(**settings)
    sampler = make_sampler(train_config, np.bincount(histories.item_rows))
    plain = module()
    step = TrainingModule(plain.model, plain.text_source, loss=make_loss(train_config), log_q=sampler.log_q)
    train(step, histories, epochs=16, sampler=sampler)
    catalogue = catalogue_vectors(step.model, colours())
    users = user_matrix(step.model, catalogue, histories)
    everything = np.tile(np.arange(N_ITEMS), (N_USERS, 1))
    assert colour_ndcg(users @ catalogue.T, histories) > 0.9
    assert colour_ndcg(ncf(step.model, users, catalogue, everything), histories) > 0.9


def test_disliked_items_are_ranked_below_items_nobody_has_had():
    """Black users rated white things too, badly; items 38 and 39 have no events."""
    generator = np.random.default_rng(0)
    pasts = [generator.permutation(38) for _ in range(N_USERS)]
    histories = Histories.from_lists(pasts, list(range(N_USERS)))
    liked = (histories.item_rows % 2) == np.repeat(np.arange(N_USERS), 38) % 2
    plain = module(config=CONFIG.model_copy(update={"id_dropout": 0.0}))
    step = TrainingModule(plain.model, plain.text_source, loss=make_loss(TrainConfig(loss="bce")))
    windows = make_windows(histories, CONFIG.history_length, liked=liked)
    train(step, histories, epochs=12, windows=windows)
    catalogue = catalogue_vectors(step.model, colours())
    assert colour_ndcg(user_matrix(step.model, catalogue, histories) @ catalogue.T, histories) > 0.9


def test_a_position_never_competes_with_its_own_target():
    step = module("id", CONFIG.model_copy(update={"dropout": 0.0}))
    histories = Histories.from_lists([[3, 3, 3]], [0])
    for [batch] in make_windows(histories, 10).epoch(0, **SETTINGS):
        assert step(batch).item() == 0.0, "item 3 is the only negative, and everybody's target"


@pytest.mark.parametrize("config", [CONFIG, TRANSFORMER], ids=["decayed means", "transformer"])
def test_a_worker_without_windows_has_a_loss_of_zero_and_gradients(config):
    histories = Histories.from_lists([[1, 2, 3]], [0])
    step = module(config=config)
    [idle] = next(make_windows(histories, 10).epoch(0, **SETTINGS, rank=1, world_size=2))
    loss = step(idle)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in step.parameters())


def test_hidden_ids_let_text_alone_recommend():
    """Items 38 and 39 never occur in train; a black user must still prefer the black one of the two."""
    histories, _ = board()
    known = Histories.from_lists([h[h < 38] for h in histories], list(range(N_USERS)))
    step = module()
    step.model.start_from_popularity(make_windows(known, 10).item_counts(N_ITEMS))
    train(step, known, epochs=12)
    catalogue = catalogue_vectors(step.model, colours())
    scores = user_matrix(step.model, catalogue, known) @ catalogue[38:].T
    assert (scores.argmax(axis=1) == np.arange(N_USERS) % 2).mean() > 0.9
