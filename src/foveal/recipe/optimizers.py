"""The tables of optimizers, and of parameters that learn in a way of their own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from foveal.recipe.fields import (
    Decay,
    Expression,
    Flag,
    NonNegativeFloat,
    Part,
    PositiveFloat,
    PositiveInt,
    Share,
)


class _Optimizer(Part):
    learning_rate: PositiveFloat
    """The full rate; the schedule multiplies it."""
    weight_decay: NonNegativeFloat = 0.0
    """Strength of the pull towards zero. SGD and RMSProp add it times the weight to the gradient (the loss
    term weight_decay / 2 * sum of squares), and so does Muon for what it leaves to SGD; AdamW, and Muon for
    what it makes orthogonal, take learning rate * weight_decay of the weight off."""
    decayed: Expression = "kernels"
    """What decays: 'kernels' (parameters of two or more dimensions), 'all', or a regular expression that is
    searched in the parameters' names."""


class Sgd(_Optimizer):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    momentum: Decay = 0.0
    """Share of the last update that is carried on."""
    nesterov: Flag = False
    """Look ahead along the momentum."""

    @model_validator(mode="after")
    def _check(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs a momentum above 0")
        return self


class AdamW(_Optimizer):
    """Adam with decoupled weight decay (Loshchilov, Hutter, 2019)."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of the averages of the gradient and of its square."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root."""


class RmsProp(_Optimizer):
    """RMSProp as TensorFlow 1.x computes it: epsilon inside the root, averages that start at one."""

    name: Literal["rmsprop"] = "rmsprop"
    decay: Decay = 0.9
    """Decay of the average of the squared gradient."""
    momentum: Decay = 0.0
    """Share of the last update that is carried on."""
    epsilon: PositiveFloat = 1e-10
    """Added to the average, under the root."""


class Muon(_Optimizer):
    """Momentum made orthogonal for filters (Jordan et al., 2024), and Nesterov SGD for all else."""

    name: Literal["muon"] = "muon"
    learning_rate: PositiveFloat
    """The full rate of what is made orthogonal: about the norm of an update's every row or column."""
    orthogonal: Expression = "filters"
    """What is made orthogonal: 'filters' (parameters of four dimensions), or a regular expression that is
    searched in the names of parameters of two or more dimensions. They count as matrices of as many rows as
    there are outputs."""
    momentum: Decay = 0.95
    """Share of the last update that is carried on, of these parameters."""
    nesterov: Flag = True
    """Look ahead along their momentum."""
    iterations: PositiveInt = 5
    """Of Newton and Schulz: more bring the update's singular values nearer to each other."""
    arithmetic: Literal["bfloat16", "float32"] = "bfloat16"
    """What these iterations compute in."""
    normalize: Flag = False
    """Before each update, scale every parameter that is made orthogonal to the norm sqrt(outputs), instead of
    decay: for networks in which normalisation follows."""
    rest_learning_rate: PositiveFloat
    """The full rate of all other parameters."""
    rest_momentum: Decay = 0.9
    """Share of the last update that is carried on, of these; Nesterov's."""

    @model_validator(mode="after")
    def _check(self) -> Muon:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs a momentum above 0")
        return self


OptimizerPart = Annotated[Sgd | AdamW | RmsProp | Muon, Field(discriminator="name")]


class Group(Part):
    """Parameters that learn in a way of their own."""

    parameters: Expression
    """Which: a regular expression that is searched in their names."""
    learning_rate: PositiveFloat | None = None
    """Their full rate, instead of the optimizer's."""
    weight_decay: NonNegativeFloat | None = None
    """Their weight decay, whatever 'decayed' says."""
    until: Share | None = None
    """Share of all steps in which they learn; the schedule runs its course in these steps, and afterwards
    they are frozen."""
