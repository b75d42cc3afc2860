"""Losses by hand: each formula, what is left out of it, and the logQ correction's fixed point."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from llmrec_ray.config import TrainConfig
from llmrec_ray.model.losses import bce, bpr, corrected, focal, make_loss, softmax

POSITIVE = torch.tensor([1.0, 0.0])
NEGATIVES = torch.tensor([[0.0, 2.0, 5.0], [1.0, 9.0, -1.0]])
LEFT_OUT = torch.tensor([[False, False, True], [False, True, False]])
ALL = {"softmax": softmax, "bpr": bpr, "bce": bce, "focal": partial(focal, gamma=2.0)}


def log_sigmoid(x: float) -> float:
    return -math.log(1.0 + math.exp(-x))


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def focal_term(truth: float) -> float:
    return -((1.0 - sigmoid(truth)) ** 2) * log_sigmoid(truth)


BY_HAND = {
    "softmax": [math.log(math.exp(1) + 1 + math.exp(2)) - 1, math.log(1 + math.exp(1) + math.exp(-1))],
    "bpr": [-(log_sigmoid(1) + log_sigmoid(-1)) / 2, -(log_sigmoid(-1) + log_sigmoid(1)) / 2],
    "bce": [-log_sigmoid(1) - (log_sigmoid(0) + log_sigmoid(-2)) / 2,
            -log_sigmoid(0) - (log_sigmoid(-1) + log_sigmoid(1)) / 2],
    "focal": [focal_term(1) + (focal_term(0) + focal_term(-2)) / 2,
              focal_term(0) + (focal_term(-1) + focal_term(1)) / 2],
}


@pytest.mark.parametrize("name", ALL)
def test_a_loss_is_what_its_formula_says(name):
    assert ALL[name](POSITIVE, NEGATIVES, LEFT_OUT, None).tolist() == pytest.approx(BY_HAND[name], rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_loss_is_finite_and_has_gradients_for_any_score_and_does_not_read_what_is_left_out(name):
    positive = torch.tensor([-90.0, 90.0, 0.0], requires_grad=True)
    negatives = torch.tensor([[90.0, -90.0], [1e6, 3.0], [7.0, 7.0]], requires_grad=True)
    left_out = torch.tensor([[False, False], [True, False], [True, True]])
    losses = ALL[name](positive, negatives, left_out, None)
    losses.sum().backward()
    assert torch.isfinite(losses).all() and (losses >= 0).all()
    assert torch.isfinite(positive.grad).all() and (negatives.grad[left_out] == 0).all()
    assert ALL[name](positive[:0], negatives[:0], left_out[:0], None).shape == (0,)


@pytest.mark.parametrize("name", ALL)
def test_a_higher_target_and_lower_negatives_lose_less(name):
    positive, negatives = POSITIVE.clone().requires_grad_(), NEGATIVES.clone().requires_grad_()
    ALL[name](positive, negatives, LEFT_OUT, None).sum().backward()
    assert (positive.grad < 0).all() and (negatives.grad[~LEFT_OUT] > 0).all()


@pytest.mark.parametrize("name", ["bce", "focal"])
def test_a_disliked_target_is_one_more_negative(name):
    loss, nothing = ALL[name], torch.zeros(1, 1, dtype=torch.bool)
    disliked = loss(torch.tensor([2.0]), torch.tensor([[0.5]]), nothing, torch.tensor([False]))
    as_liked = loss(torch.tensor([-2.0]), torch.tensor([[0.5]]), nothing, None)
    torch.testing.assert_close(disliked, as_liked)
    torch.testing.assert_close(
        loss(POSITIVE, NEGATIVES, LEFT_OUT, torch.tensor([True, True])), loss(POSITIVE, NEGATIVES, LEFT_OUT, None)
    )


def test_focal_without_gamma_is_bce_and_with_it_easy_examples_count_less():
    torch.testing.assert_close(
        focal(POSITIVE, NEGATIVES, LEFT_OUT, gamma=0.0), bce(POSITIVE, NEGATIVES, LEFT_OUT)
    )
    easy, hard = (torch.tensor([4.0]), torch.tensor([-4.0]))
    nothing, none = torch.zeros(1, 0), torch.zeros(1, 0, dtype=torch.bool)
    assert focal(easy, nothing, none) < 1e-3 * bce(easy, nothing, none)
    assert focal(hard, nothing, none) > 0.9 * bce(hard, nothing, none)


def test_the_recipe_names_the_loss():
    for name, expected in (("sampled_softmax", softmax), ("full_softmax", softmax), ("bpr", bpr), ("bce", bce)):
        assert make_loss(TrainConfig(loss=name)) is expected
    chosen = make_loss(TrainConfig(loss="focal", focal_gamma=3.0))
    torch.testing.assert_close(
        chosen(POSITIVE, NEGATIVES, LEFT_OUT, None), focal(POSITIVE, NEGATIVES, LEFT_OUT, gamma=3.0)
    )


@pytest.mark.parametrize("loss", [softmax, bpr, bce])
def test_corrected_scores_learn_the_same_from_popular_negatives_as_from_uniform_ones(loss):
    """One context, five items: with the correction the scores find log p + constant however negatives are drawn."""
    wanted = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    drawn = np.array([0.5, 0.2, 0.1, 0.1, 0.1])
    generator = np.random.default_rng(0)
    targets = torch.from_numpy(generator.choice(5, 4000, p=wanted))
    negatives = torch.from_numpy(generator.choice(5, (4000, 4), p=drawn))
    log_q, scores = torch.log(torch.tensor(drawn)), torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.05)
    left_out = torch.zeros(negatives.shape, dtype=torch.bool)
    for _ in range(250):
        positive, negative = scores[targets], scores[negatives]
        value = loss(*corrected(positive, negative, log_q[targets], log_q[negatives]), left_out, None).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    found = (scores - scores.mean()).detach().numpy()
    np.testing.assert_allclose(found, np.log(wanted) - np.log(wanted).mean(), atol=0.2)
