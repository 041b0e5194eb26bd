"""The optimizer of a model, and its state as tensors by name for a checkpoint without pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from tarazu.engine.trainable import TrainableModel
from tarazu.recipe.schema import Method


def build(model: TrainableModel, method: Method) -> torch.optim.Optimizer:
    """The optimizer of a method.

    It has one parameter group for the model's own learning rate and one for each `ParameterGroup`.
    Each group also holds the names of its parameters, its peak rate and its epochs.
    """
    trainable = model.trainable()
    grouped = set().union(*(group.names for group in model.groups))
    ungrouped = {name: p for name, p in trainable.items() if name not in grouped}
    groups = [_parameter_group(ungrouped, model.learning_rate)]
    for group in model.groups:
        parameters = {name: trainable[name] for name in sorted(group.names)}
        groups.append(
            _parameter_group(parameters, group.learning_rate, group.from_epoch, group.until_epoch)
        )
    groups = [group for group in groups if group["params"]]

    settings = {"lr": model.learning_rate, "weight_decay": method.weight_decay}
    match method.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, **settings)
        case "rmsprop":
            return torch.optim.RMSprop(groups, **settings)
        case _:
            fused = next(iter(trainable.values())).is_cuda
            return torch.optim.AdamW(groups, betas=(0.9, 0.999), fused=fused, **settings)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float, epoch: int) -> float:
    """Set every group's learning rate to its peak times `factor`.

    A group outside its epochs gets the rate 0, and its parameters need no gradients.

    Args:
        optimizer: an optimizer from `build`.
        factor: factor of the schedule, 0 to 1.
        epoch: current epoch, from 0.

    Returns:
        The rate of the first group.
    """
    for group in optimizer.param_groups:
        is_active = group["from_epoch"] <= epoch < (group["until_epoch"] or math.inf)
        group["lr"] = group["peak"] * factor if is_active else 0.0
        for parameter in group["params"]:
            parameter.requires_grad_(is_active)
    return optimizer.param_groups[0]["lr"]


def skips_nonfinite_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer skips a bad step on the device, without the host reading the loss."""
    return bool(optimizer.defaults.get("fused"))


def step_if_finite(optimizer: torch.optim.Optimizer, loss_and_norm: torch.Tensor) -> None:
    """Take an optimizer step unless the loss or the gradient norm is infinite or NaN.

    Args:
        optimizer: an optimizer from `build`.
        loss_and_norm: loss and gradient norm on the device, (2,).
    """
    is_finite = torch.isfinite(loss_and_norm).all()
    if skips_nonfinite_on_device(optimizer):
        # The fused step reads `found_inf` on the device and does nothing where it is 1. Gradient
        # scalers use the same attribute.
        optimizer.found_inf = (~is_finite).float()
        optimizer.step()
    elif is_finite:
        optimizer.step()


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state by `<parameter name>|<key>`; tensors of the parameter's shape or ()."""
    tensors = {}
    for name, parameter in _named_parameters(optimizer).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{name}|{key}"] = torch.as_tensor(value)
    return tensors


def load_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load the tensors of `state_tensors` into a new optimizer.

    Tensors have the shape of their parameter or (). The step count goes where the optimizer expects
    it: to the GPU if the optimizer is fused, otherwise to the CPU.
    """
    parameters = _named_parameters(optimizer)
    is_fused = skips_nonfinite_on_device(optimizer)
    for tensor_name, tensor in tensors.items():
        name, _, key = tensor_name.rpartition("|")
        parameter = parameters[name]
        on_cpu = key == "step" and not is_fused
        device = torch.device("cpu") if on_cpu else parameter.device
        optimizer.state[parameter][key] = tensor.to(device)


def _named_parameters(optimizer: torch.optim.Optimizer) -> dict[str, torch.nn.Parameter]:
    """All parameters by name, in the optimizer's order."""
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }


def _parameter_group(
    parameters: dict[str, torch.nn.Parameter],
    peak: float,
    from_epoch: int = 0,
    until_epoch: int | None = None,
) -> dict[str, Any]:
    return {
        "params": list(parameters.values()),
        "names": list(parameters),
        "peak": peak,
        "lr": peak,
        "from_epoch": from_epoch,
        "until_epoch": until_epoch,
    }
