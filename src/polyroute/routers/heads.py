"""The arithmetic of linear heads: ridge and logistic regression, their posteriors, and learning row by row.

Letters: n rows, p features (the first is 1), g posteriors shared by candidates with the same rows, m candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyroute.types import Array


class Features(NamedTuple):
    """From unit embeddings to features: x @ directions + offset, with a 1 first and prompt tokens last if wanted."""

    directions: Array  # [d, p] float32; its first column is 0
    offset: Array  # [p] float32; its first entry is 1
    tokens: Array  # [2] mean and std of the prompt-token feature on the fitted rows

    def __call__(self, x: Array, tokens: Array | None) -> Array:
        """Features [n, p] float32. x: [n, d] unit rows. tokens: [n], on the scale fitted; None: no such feature."""
        phi: Array = x @ self.directions + self.offset
        if tokens is not None:
            phi[:, -1] = (tokens - self.tokens[0]) / self.tokens[1]
        return phi


def features(x: Array, rank: int | None, tokens: Array | None) -> Features:
    """Centred features of rows x [n, d]: all d directions, or the `rank` along which they vary most."""
    d = x.shape[1]
    mean = x.mean(axis=0, dtype=float)
    if rank is None or rank >= d:
        directions = np.eye(d)
    elif rank == 0:
        directions = np.zeros((d, 0))
    else:
        centred = x.astype(float) - mean
        directions = np.linalg.eigh(centred.T @ centred)[1][:, : d - rank - 1 : -1]
    columns = [np.zeros((d, 1)), directions] + ([] if tokens is None else [np.zeros((d, 1))])
    wide = np.hstack(columns)
    offset = -mean @ wide
    offset[0] = 1.0
    scale = np.array([0.0, 1.0]) if tokens is None else np.array([tokens.mean(), tokens.std() or 1.0])
    return Features(np.ascontiguousarray(wide, np.float32), offset.astype(np.float32), scale)


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), without overflow."""
    half = np.tanh(z * 0.5)
    half += 1.0
    half *= 0.5
    return half


def ridge_posterior(phi: Array, penalty: Array) -> Array:
    """Inverse of the penalised Gram matrix, [p, p]: the posterior covariance for noise of variance 1."""
    inverse: Array = np.linalg.inv(phi.T @ phi + np.diag(penalty))
    return (inverse + inverse.T) / 2


def add_rows(posterior: Array, phi: Array) -> Array:
    """The ridge posterior [p, p] once rows phi [b, p] are seen too (Sherman, Morrison and Woodbury)."""
    if len(phi) > len(posterior):
        return ridge_rows(posterior, phi)
    gain = phi @ posterior  # [b, p]
    inverse: Array = posterior - gain.T @ np.linalg.solve(np.eye(len(phi)) + gain @ phi.T, gain)
    return (inverse + inverse.T) / 2


def ridge_rows(posterior: Array, phi: Array) -> Array:
    """The same through the precision: cheaper when there are more rows than features."""
    inverse: Array = np.linalg.inv(np.linalg.inv(posterior) + phi.T @ phi)
    return (inverse + inverse.T) / 2


def logistic_posterior(phi: Array, y: Array, offset: Array, penalty: Array, steps: int = 50) -> tuple[Array, Array]:
    """Most probable weights [p] and their Laplace covariance [p, p], by damped Newton steps.

    y: [n] in 0..1, graded outcomes allowed. offset: [n] logits added to every row. penalty: [p] above 0.
    """
    weight = np.zeros(phi.shape[1])

    def loss(w: Array) -> float:
        z = phi @ w + offset
        return float(np.logaddexp(0.0, z).sum() - y @ z + 0.5 * penalty @ w**2)

    here = loss(weight)
    for _ in range(steps):
        p = sigmoid(phi @ weight + offset)
        slope = phi.T @ (y - p) - penalty * weight
        curve = phi.T @ (phi * (p * (1 - p))[:, None]) + np.diag(penalty)
        step = np.linalg.solve(curve, slope)
        gain, size = float(slope @ step), 1.0
        if gain < 1e-9:
            break
        while (there := loss(weight + size * step)) > here - 1e-4 * size * gain and size > 1e-8:
            size /= 2
        weight, here = weight + size * step, there
    covariance = np.linalg.inv(curve)
    return weight, (covariance + covariance.T) / 2


def logistic_rows(weight: Array, covariance: Array, phi: Array, y: Array, offset: Array) -> tuple[Array, Array]:
    """Online Laplace: the posterior N(weight, covariance) is the prior of the new rows phi [b, p].

    Their mode is found by iterated linearisation in b dimensions; the curvature there joins the covariance.
    """
    for start in range(0, len(phi), phi.shape[1]):
        part = slice(start, start + phi.shape[1])
        weight, covariance = _logistic_rows(weight, covariance, phi[part], y[part], offset[part])
    return weight, covariance


def _logistic_rows(prior: Array, covariance: Array, phi: Array, y: Array, offset: Array) -> tuple[Array, Array]:
    gain = phi @ covariance  # [b, p]
    inner, start = gain @ phi.T, phi @ prior + offset  # [b, b], [b]

    def loss(move: Array) -> float:
        pull = inner @ move
        return float(np.logaddexp(0.0, start + pull).sum() - y @ (start + pull) + 0.5 * move @ pull)

    move = np.zeros(len(y))  # the mode is prior + gain.T @ move, where move = y - p
    here = loss(move)
    for _ in range(50):
        p = sigmoid(start + inner @ move)
        curve, slope = p * (1 - p), y - p - move
        step, size = np.linalg.solve(np.eye(len(y)) + curve[:, None] * inner, slope), 1.0
        fall = float(slope @ inner @ step)
        if fall < 1e-12:
            break
        while (there := loss(move + size * step)) > here - 1e-4 * size * fall and size > 1e-8:
            size /= 2
        move, here = move + size * step, there
    scaled = np.sqrt(curve)[:, None] * gain
    system = np.eye(len(y)) + np.sqrt(np.outer(curve, curve)) * inner
    covariance = covariance - scaled.T @ np.linalg.solve(system, scaled)
    return prior + gain.T @ move, (covariance + covariance.T) / 2
