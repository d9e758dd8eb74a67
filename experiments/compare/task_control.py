"""Control by policy gradients: a small network balances a pole, or swings up a double pendulum.

REINFORCE with a baseline: the return of each step, less the mean of all returns of the batch, weighs the log-probability of its
action (R. J. Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning, 1992,
https://doi.org/10.1007/BF00992696). The environments are CartPole-v1 and Acrobot-v1 of the package gymnasium.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from ..common.packages import needed
from .task import Grids, Task
from .task_parts import device_of, evaluating, refuse_data, seeded

DISCOUNT = 0.99
EPISODES = 8  # of a batch
EVALUATED = 10  # episodes
WIDTH = 64
SEEDS = {
    "train": 10**9,
    "validation": 2 * 10**9,
    "test": 3 * 10**9,
}  # of the first episode of each evaluation; those of trainings are below
Episode = tuple[Tensor, Tensor, list[float]]  # observations, actions, rewards


class Control:
    """Task to maximize the sum of the rewards of an episode; see :class:`experiments.compare.task.Task`."""

    metric = "mean return"
    decays = False

    def __init__(self, name: str, environment: str, grids: Grids, quick: bool) -> None:
        self.name, self.batch, self.steps, self.learning_rates = name, EPISODES, 3 if quick else 30, grids
        self._gymnasium = needed("gymnasium", "gymnasium", f"task {name}")
        self._environment, self._evaluated = environment, 3 if quick else EVALUATED
        made = self._gymnasium.make(environment)
        self._observed, self._actions = made.observation_space.shape[0], int(made.action_space.n)
        self.source = f"perceptron of {WIDTH} hidden units by policy gradients on {environment}, {EPISODES} episodes a step"
        self.trivial = ("actions at random", self._mean_return(None, "test"))

    def make_model(self, seed: int) -> nn.Module:
        """Return a policy, the same for the same seed."""
        return seeded(lambda: nn.Sequential(nn.Linear(self._observed, WIDTH), nn.Tanh(), nn.Linear(WIDTH, self._actions)), seed)

    def batches(self, seed: int) -> Iterator[list[int]]:
        """Yield the seeds of the episodes of each batch."""
        first = 10**5 * EPISODES * seed
        while True:
            yield list(range(first, first + EPISODES))
            first += EPISODES

    def loss(self, model: nn.Module, batch: Sequence[int]) -> Tensor:
        """Return the mean of - (return - mean return) / std x log-probability of the action, over the steps of all episodes."""
        episodes = self.play(model, batch)
        observations, actions, rewards = zip(*episodes, strict=True)
        returns = torch.cat([_returns(each) for each in rewards]).to(device_of(model))
        weights = (returns - returns.mean()) / (returns.std() + 1e-6)
        distribution = Categorical(logits=model(torch.cat(observations).to(device_of(model))))
        return -(weights * distribution.log_prob(torch.cat(actions).to(device_of(model)))).mean()

    def evaluate(self, model: nn.Module, part: str) -> float:
        """Return the mean over some episodes, with actions drawn as in training."""
        with evaluating(model):
            return self._mean_return(model, part)

    def _mean_return(self, model: nn.Module | None, part: str) -> float:
        seeds = range(SEEDS[part], SEEDS[part] + self._evaluated)
        return float(np.mean([sum(rewards) for _, _, rewards in self.play(model, seeds)]))

    @torch.no_grad()
    def play(self, model: nn.Module | None, seeds: Sequence[int]) -> list[Episode]:
        """Play an episode for each seed, side by side, with random actions without a model; the seeds determine everything."""
        environments = [self._gymnasium.make(self._environment) for _ in seeds]
        randoms = [np.random.default_rng([seed, 1]) for seed in seeds]  # random numbers apart from those of the environment
        seen = [[environment.reset(seed=seed)[0]] for environment, seed in zip(environments, seeds, strict=True)]
        taken: list[list[int]] = [[] for _ in seeds]
        rewards: list[list[float]] = [[] for _ in seeds]
        active = list(range(len(seeds)))
        while active:
            odds = self._odds(model, np.stack([seen[i][-1] for i in active]))
            going_on = []
            for i, own in zip(active, odds, strict=True):
                action = min(int((own < randoms[i].random()).sum()), self._actions - 1)
                observation, reward, ended, cut, _ = environments[i].step(action)
                taken[i].append(action)
                rewards[i].append(float(reward))
                if not (ended or cut):
                    seen[i].append(observation)
                    going_on.append(i)
            active = going_on
        observations = [torch.from_numpy(np.array(each, dtype=np.float32)) for each in seen]
        return list(zip(observations, map(torch.tensor, taken), rewards, strict=True))

    def _odds(self, model: nn.Module | None, observations: Any) -> Any:
        """Return the cumulative probabilities of the actions, shape (episodes, actions)."""
        if model is None:
            return np.tile(np.arange(1, self._actions + 1) / self._actions, (len(observations), 1))
        logits = model(torch.from_numpy(observations).to(device_of(model))).double()
        return logits.softmax(1).cumsum(1).cpu().numpy()


def _returns(rewards: Sequence[float]) -> Tensor:
    """Return the discounted sum of the rewards from each step on."""
    found = np.zeros(len(rewards) + 1)
    for step in reversed(range(len(rewards))):
        found[step] = rewards[step] + DISCOUNT * found[step + 1]
    return torch.from_numpy(found[:-1]).float()


ENVIRONMENTS: dict[str, tuple[str, Grids]] = {
    "cartpole": ("CartPole-v1", {"SGD": (0.05, 0.1, 0.2, 0.4), "Adam": (0.005, 0.01, 0.02, 0.04)}),
    "acrobot": ("Acrobot-v1", {"SGD": (0.05, 0.1, 0.2, 0.4), "Adam": (0.0025, 0.005, 0.01, 0.02)}),
}


def task(name: str, data: Path | None, quick: bool) -> Task:
    """Return the task of that name; raise ValueError if the package is missing or ``data`` is given."""
    refuse_data(data, name, "whose data are played")
    return Control(name, *ENVIRONMENTS[name], quick)
