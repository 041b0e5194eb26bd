"""Tensors out of a PyTorch .pth file without running it: its pickle is read as data, by a small machine of our own.

A pickle is a program. This machine knows only the handful of instructions that a state dict needs, and of the names
that a pickle may import only those that mean "a dictionary" and "a tensor over this storage"; any other name is
refused, and no name is ever looked up. Both forms that torch.save has had are read: the zip (since 1.6) and the older
flat file.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from tarazu.errors import UserError

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}
DICT, TENSOR, PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
MAGIC = 0x1950A86A20F9469CFC6C
PUT = {"BINPUT", "LONG_BINPUT", "PUT"}
GET = {"BINGET", "LONG_BINGET", "GET"}
VALUES = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINFLOAT",
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


@dataclass(frozen=True)
class _Name:
    """A name that the pickle wanted to import."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True)
class _View:
    """A tensor to be: a storage, and how to look at it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_MARK = object()


def load_state_dict_file(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a .pth file. Raises `UserError` when it holds anything else than tensors by name."""
    try:
        views, bytes_of = _read_zip(path) if zipfile.is_zipfile(path) else _read_flat(path)
        if not isinstance(views, dict) or not all(
            isinstance(name, str) and isinstance(view, _View) for name, view in views.items()
        ):
            raise ValueError("not a dictionary of tensors")
        return {name: _tensor(view, bytes_of(view.storage)) for name, view in views.items()}
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        struct.error,
        zipfile.BadZipFile,
        RuntimeError,
    ) as error:
        raise UserError(
            f"not a plain state dict: {error}",
            location=str(path),
            hint="only tensors by name are read; save it as .safetensors",
        ) from None


def _read_zip(path: Path) -> tuple[Any, Callable[[_Storage], bytes]]:
    archive = zipfile.ZipFile(path)
    program = next(name for name in archive.namelist() if name.endswith("data.pkl"))
    folder = program.removesuffix("data.pkl")
    tree = _run(io.BytesIO(archive.read(program)))
    return tree, lambda storage: archive.read(f"{folder}data/{storage.key}")


def _read_flat(path: Path) -> tuple[Any, Callable[[_Storage], bytes]]:
    data = io.BytesIO(path.read_bytes())
    if _run(data) != MAGIC:
        raise ValueError("neither a zip nor PyTorch's older form")
    _run(data), _run(data)  # the protocol's version, and the writing machine's word sizes
    tree, keys = _run(data), _run(data)
    sizes = {view.storage.key: view.storage.dtype.itemsize for view in tree.values()}
    storages = {}
    for key in keys:
        (count,) = struct.unpack("<q", data.read(8))
        storages[key] = data.read(count * sizes[key])
    return tree, lambda storage: storages[storage.key]


def _tensor(view: _View, data: bytes) -> torch.Tensor:
    if len(data) != view.storage.length * view.storage.dtype.itemsize:
        raise ValueError("a storage is cut short")
    last = view.offset + sum(
        (size - 1) * step for size, step in zip(view.shape, view.stride, strict=True)
    )
    if view.offset < 0 or min(view.stride, default=0) < 0 or last >= max(view.storage.length, 1):
        raise ValueError("a tensor reaches beyond its storage")
    flat = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(view.storage.dtype)
    return torch.as_strided(flat, view.shape, view.stride, view.offset).clone()


def _run(file: BinaryIO) -> Any:
    """The value that one pickle builds, with tensors as `_View`."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in PUT:
            memo[argument] = stack[-1]
        elif name in GET:
            stack.append(memo[argument])
        elif name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name not in ("PROTO", "FRAME"):
            _build(name, argument, stack)
    raise ValueError("the pickle has no end")


def _build(name: str, argument: Any, stack: list[Any]) -> None:
    """The instructions that put things together."""
    match name:
        case "MARK":
            stack.append(_MARK)
        case "GLOBAL":
            stack.append(_Name(argument))
        case "EMPTY_DICT":
            stack.append({})
        case "EMPTY_LIST":
            stack.append([])
        case "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        case "APPENDS":
            values = _since_mark(stack)
            stack[-1].extend(values)
        case "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        case "SETITEMS":
            values = _since_mark(stack)
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
        case "SETITEM":
            key, value = stack[-2:]
            del stack[-2:]
            stack[-1][key] = value
        case "BINPERSID":
            stack.append(_storage(stack.pop()))
        case "REDUCE":
            arguments = stack.pop()
            stack.append(_call(stack.pop(), arguments))
        case "BUILD":  # attributes of the dictionary (`_metadata`): not tensors, left out
            stack.pop()
        case _:
            raise ValueError(f"the instruction {name}")


def _since_mark(stack: list[Any]) -> list[Any]:
    place = len(stack) - 1 - stack[::-1].index(_MARK)
    values = stack[place + 1 :]
    del stack[place:]
    return values


def _storage(identity: tuple) -> _Storage:
    kind, name, key, _, length = identity[:5]
    dtype = STORAGES.get(name.name.removeprefix("torch ")) if isinstance(name, _Name) else None
    if kind != "storage" or dtype is None:
        raise ValueError(f"a storage of an unknown kind ({name})")
    return _Storage(str(key), dtype, int(length))


def _call(function: Any, arguments: tuple) -> Any:
    name = function.name if isinstance(function, _Name) else str(function)
    if name == DICT and arguments in ((), ([],)):
        return {}
    if name == TENSOR:
        storage, offset, shape, stride = arguments[:4]
        return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))
    if name == PARAMETER:
        return arguments[0]
    raise ValueError(f"it calls {name}")
