"""GLIDE's two samplers: ancestral steps with a learned variance (base), and DDIM over chosen time steps (upsampler).

diffusers' `UnCLIPScheduler` and `DDIMScheduler` come close, but the one's coefficients are differences of float32
numbers, and the other takes no list of time steps. Here all coefficients are float64, as in the original
(`gaussian_diffusion.py`, `respace.py`). Models see the training's own numbers of the time steps.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from numpy.typing import NDArray

# What the original calls fast27: dense at the low-noise end, and 997 in place of 999 against artefacts of DDIM.
# fmt: off
FAST27 = (0, 22, 44, 66, 88, 111, 133, 155, 177, 199, 200, 222, 244, 266, 288, 311, 333, 355, 377, 399, 400, 500, 599,
          600, 799, 800, 997)
# fmt: on


def betas(schedule: str, count: int) -> NDArray[np.float64]:
    """Variance of the noise that each training time step adds, [count]: `linear` (Ho et al., 2020) or
    `squaredcos_cap_v2` (Nichol & Dhariwal, 2021, Equation 17). Raises ValueError for another name."""
    if schedule == "linear":
        return np.linspace(0.1 / count, 20 / count, count)
    if schedule == "squaredcos_cap_v2":
        times = np.arange(count + 1) / count
        kept = np.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
        capped: NDArray[np.float64] = np.minimum(1 - kept[1:] / kept[:-1], 0.999)
        return capped
    raise ValueError(f"beta_schedule: {schedule!r} is neither 'linear' nor 'squaredcos_cap_v2'")


def evenly_spaced(steps: int, count: int) -> list[int]:
    """`steps` of `count` time steps, ascending, the first and the last among them; 2 <= steps <= count."""
    # Strides are added up, not multiplied: near halves the two round differently, and the original adds.
    strides = np.full(steps, (count - 1) / (steps - 1))
    strides[0] = 0.0
    return [int(step) for step in np.round(np.cumsum(strides))]


class _Respaced(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A diffusion process that visits some of its training time steps (Nichol & Dhariwal, 2021, section 4)."""

    order = 1
    timesteps: list[int]
    """The time steps to visit, in order: descending."""

    def _visit(self, ascending: Sequence[int]) -> None:
        kept = np.cumprod(1 - betas(self.config.beta_schedule, self.config.num_train_timesteps))[list(ascending)]
        before = np.append(1.0, kept[:-1])
        self.timesteps = list(ascending)[::-1]
        self._signal = {
            step: (float(now), float(then)) for step, now, then in zip(ascending, kept, before, strict=True)
        }

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timestep: int) -> torch.Tensor:
        """x_0 -> x_t, all [N, 3, S, S], at a time step that is visited (paper, Equation 9; original: `q_sample`)."""
        signal, _ = self._signal[timestep]
        return clean * math.sqrt(signal) + noise * math.sqrt(1 - signal)

    @staticmethod
    def _clean(noise: torch.Tensor, sample: torch.Tensor, signal: float) -> torch.Tensor:
        """The image that the predicted noise implies, clipped to [-1, 1]."""
        return (sample / math.sqrt(signal) - noise * math.sqrt(1 / signal - 1)).clamp(-1, 1)


class GlideAncestralScheduler(_Respaced):
    """Samples from p(x_prev | x_t) with a variance that the model interpolates between the posterior's and beta, on a
    log scale (Nichol & Dhariwal, 2021, Equation 15; original: `p_sample`)."""

    def __init__(self, num_train_timesteps: int = 1000, beta_schedule: str = "squaredcos_cap_v2"):
        self.register_to_config(num_train_timesteps=num_train_timesteps, beta_schedule=beta_schedule)
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Visit that many time steps, evenly spaced."""
        self._visit(evenly_spaced(num_inference_steps, self.config.num_train_timesteps))

    def step(
        self, noise: torch.Tensor, interpolation: torch.Tensor, timestep: int, sample: torch.Tensor, fresh: torch.Tensor
    ) -> torch.Tensor:
        """x_t -> x_prev, all [N, 3, S, S]: the predicted noise, the predicted interpolation coefficient (-1: the
        posterior's variance, 1: beta), x_t, and fresh standard normal noise, which the last step does not use."""
        signal, before = self._signal[timestep]
        beta = 1 - signal / before
        clean = self._clean(noise, sample, signal)
        mean = (
            clean * (beta * math.sqrt(before) / (1 - signal))
            + sample * ((1 - before) * math.sqrt(1 - beta) / (1 - signal))
        )  # fmt: skip
        if timestep == self.timesteps[-1]:
            return mean
        smallest, largest = math.log(beta * (1 - before) / (1 - signal)), math.log(beta)
        share = (interpolation + 1) / 2
        return mean + torch.exp(0.5 * (share * largest + (1 - share) * smallest)) * fresh


class GlideDDIMScheduler(_Respaced):
    """Deterministic DDIM over a list of time steps (Song et al., 2021, Equation 12 with sigma 0; original:
    `ddim_sample` with eta 0)."""

    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_schedule: str = "linear",
        timesteps: Sequence[int] = FAST27,
    ):
        self.register_to_config(
            num_train_timesteps=num_train_timesteps, beta_schedule=beta_schedule, timesteps=list(timesteps)
        )
        self._visit(sorted(timesteps))

    def step(self, noise: torch.Tensor, timestep: int, sample: torch.Tensor) -> torch.Tensor:
        """x_t -> x_prev, all [N, 3, S, S]: the predicted noise and x_t."""
        signal, before = self._signal[timestep]
        clean = self._clean(noise, sample, signal)
        # The noise that agrees with the clipped image, which is not the predicted one.
        implied = (sample / math.sqrt(signal) - clean) / math.sqrt(1 / signal - 1)
        return clean * math.sqrt(before) + implied * math.sqrt(1 - before)
