"""The optimizer of a model, with its state as plain tensors by name: what a checkpoint can hold without pickling."""

from __future__ import annotations

import math

import torch

from tarazu.engine.trainable import TrainableModel
from tarazu.recipe.schema import Method


def build(model: TrainableModel, method: Method) -> torch.optim.Optimizer:
    """One parameter group for the model's own rate and one for each `Group`; every group knows its peak rate."""
    trainable = model.trainable()
    grouped = set().union(*(group.names for group in model.groups))
    rest = {name: p for name, p in trainable.items() if name not in grouped}
    groups = [_group(rest, model.learning_rate, 0)]
    groups += [
        _group(
            {n: trainable[n] for n in sorted(g.names)}, g.learning_rate, g.from_epoch, g.until_epoch
        )
        for g in model.groups
    ]
    groups = [group for group in groups if group["params"]]
    match method.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, lr=model.learning_rate, weight_decay=method.weight_decay)
        case "rmsprop":
            return torch.optim.RMSprop(
                groups, lr=model.learning_rate, weight_decay=method.weight_decay
            )
        case _:
            fused = next(iter(trainable.values())).is_cuda
            return torch.optim.AdamW(
                groups,
                lr=model.learning_rate,
                weight_decay=method.weight_decay,
                betas=(0.9, 0.999),
                fused=fused,
            )


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float, epoch: int) -> float:
    """Sets every group's rate to its peak times `factor`; a group whose epochs these are not gets 0 and no gradients."""
    for group in optimizer.param_groups:
        on = group["from_epoch"] <= epoch < (group["until_epoch"] or math.inf)
        group["lr"] = group["peak"] * factor if on else 0.0
        for parameter in group["params"]:
            parameter.requires_grad_(on)
    return optimizer.param_groups[0]["lr"]


def skips_nonfinite_on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer can leave a step out on the device itself, so that nobody has to wait for the figures."""
    return bool(optimizer.defaults.get("fused"))


def step_if_finite(optimizer: torch.optim.Optimizer, measured: torch.Tensor) -> None:
    """An optimizer step, unless one of the figures `measured` is infinite or not a number."""
    finite = torch.isfinite(measured).all()
    if skips_nonfinite_on_device(optimizer):
        optimizer.found_inf = (
            ~finite
        ).float()  # what gradient scalers use: the fused step is then left out
        optimizer.step()
    elif finite:
        optimizer.step()


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as `<parameter name>|<key>` -> tensor."""
    out = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    out[f"{name}|{key}"] = torch.as_tensor(value)
    return out


def load_state(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Takes `state_tensors` back. The step count stays where the optimizer wants it (the CPU, unless fused)."""
    by_name = {
        n: p for g in optimizer.param_groups for n, p in zip(g["names"], g["params"], strict=True)
    }
    fused = bool(optimizer.defaults.get("fused"))
    for key, tensor in tensors.items():
        name, _, field = key.rpartition("|")
        parameter = by_name[name]
        device = parameter.device if field != "step" or fused else torch.device("cpu")
        optimizer.state[parameter][field] = tensor.to(device)


def _group(
    parameters: dict[str, torch.nn.Parameter],
    peak: float,
    from_epoch: int,
    until_epoch: int | None = None,
) -> dict:
    return {
        "params": list(parameters.values()),
        "names": list(parameters),
        "peak": peak,
        "lr": peak,
        "from_epoch": from_epoch,
        "until_epoch": until_epoch,
    }
