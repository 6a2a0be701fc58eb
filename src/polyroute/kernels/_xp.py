"""The only file that knows array libraries: one name space for numpy, torch and whatever follows the standard."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from polyroute.errors import ConfigError
from polyroute.types import Array


def namespace(*arrays: Array) -> Any:
    """The array-API functions of the library these arrays belong to."""
    return array_namespace(*arrays)


def gather(x: Array, index: Array) -> Array:
    """x[..., index] along the last axis. x: [n, m]. index: [n, k] int. Returns [n, k]."""
    return namespace(x).take_along_axis(x, index, axis=-1)


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """The k largest of each row, largest first: (values, index), each [n, min(k, m)]. See kernels/topk.py."""
    if k < 1:
        raise ConfigError("k", got=k, expected="1 or more")
    k = min(k, x.shape[-1])
    if isinstance(x, np.ndarray):
        return _top_k_numpy(x, k)
    if is_torch_array(x):
        return _top_k_torch(x, k)
    index = namespace(x).argsort(x, axis=-1, descending=True, stable=True)[..., :k]
    return gather(x, index), index


def _top_k_numpy(x: np.ndarray, k: int) -> tuple[Array, Array]:
    num_columns = x.shape[-1]
    if k == 1:
        index = x.argmax(axis=-1, keepdims=True)
    elif 4 * k < num_columns:  # a partition beats a sort once most of the row is left out
        near = np.argpartition(x, num_columns - k, axis=-1)[..., num_columns - k :]
        near.sort(axis=-1)  # so that the stable sort below puts ties in order of column
        order = np.argsort(-np.take_along_axis(x, near, axis=-1), axis=-1, kind="stable")
        index = np.take_along_axis(near, order, axis=-1)
    else:
        index = np.argsort(-x, axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(x, index, axis=-1), index


def _top_k_torch(x: Array, k: int) -> tuple[Array, Array]:
    import torch

    few = k <= 3 and 8 <= x.shape[-1] <= 64 and x.ndim == 2
    if not few or x.device.type != "cpu" or not x.is_floating_point() or torch.compiler.is_compiling():
        return tuple(x.topk(k, dim=-1))
    rest = x.detach()
    columns: list[Array] = []  # on a CPU a search for each of a few beats sorting a part of every row
    for i in range(k):
        if i:
            rest = rest.scatter(-1, columns[-1], -torch.inf)
        highest, column = rest.max(dim=-1, keepdim=True)
        columns.append(column)
    if k > 1 and bool((highest == -torch.inf).any()):  # fewer than k are left: a column would come twice
        return tuple(x.topk(k, dim=-1))
    index = torch.cat(columns, dim=-1)
    return x.gather(-1, index), index


def logsumexp(x: Array, axis: int) -> Array:
    """log(sum(exp(x))) along one axis, kept with length 1; -inf where every entry is -inf, or there is none."""
    xp = namespace(x)
    if x.shape[axis] == 0:
        shape = [1 if i == axis % x.ndim else size for i, size in enumerate(x.shape)]
        return xp.full(tuple(shape), -xp.inf, dtype=x.dtype)
    peak = xp.max(x, axis=axis, keepdims=True)
    peak = xp.where(xp.isfinite(peak), peak, xp.zeros_like(peak))
    total = xp.sum(xp.exp(x - peak), axis=axis, keepdims=True)
    return log(total) + peak


def log(x: Array) -> Array:
    """Natural logarithm of x >= 0; -inf at 0, without a warning."""
    xp = namespace(x)
    return xp.where(x > 0, xp.log(xp.where(x > 0, x, xp.ones_like(x))), xp.full_like(x, -xp.inf))
