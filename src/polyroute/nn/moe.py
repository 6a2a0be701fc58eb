"""A mixture-of-experts layer put together from parts, and what a training loop needs of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from polyroute.errors import ConfigError, ShapeError
from polyroute.nn.experts import Experts, FeedForward
from polyroute.nn.gates import Renorm
from polyroute.nn.inputs import Hidden
from polyroute.nn.normalise import Softmax
from polyroute.nn.routing import (
    Pairs,
    Part,
    Routing,
    TokenContext,
    count_pairs,
    in_recomputation,
    require_finite,
    require_shape,
)
from polyroute.nn.scorers import Linear
from polyroute.nn.selection import TopK


class RouterGradientWarning(UserWarning):
    """The router of a layer gets no gradient from the task."""


class Router(nn.Module):
    """Parts 1 to 5: TokenContext -> Routing. Arguments: see MoE."""

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        inp: Part = Hidden(),
        scorer: Part = Linear(),
        norm: Part = Softmax(),
        mods: Sequence[Part] = (),
        select: Part = TopK(2),
        gate: Part = Renorm(),
    ):
        super().__init__()
        if num_experts < 1:
            raise ConfigError("num_experts", got=num_experts, expected="1 or more")
        self.num_experts = num_experts
        self.inp = inp.build(dim, num_experts)
        width = getattr(self.inp, "width", dim)
        self.scorer = scorer.build(width, num_experts)
        self.norm = norm.build(width, num_experts)
        self.mods = Parts(mod.build(width, num_experts) for mod in mods)
        self.select = select.build(width, num_experts)
        self.gate = gate.build(width, num_experts)
        if getattr(self.select, "k", None) == 1 and isinstance(self.gate, Renorm):
            warnings.warn(
                "Renorm with one expert a token gives a constant gate: the router learns nothing from the task. "
                "Use gate=Raw(), or k of 2 and more.",
                RouterGradientWarning,
                stacklevel=3,
            )

    def forward(self, ctx: TokenContext) -> Routing:
        r_TR = self.inp(ctx)
        logits = self.scorer(r_TR, ctx.valid_T)
        require_finite("logits", logits)
        open_E = None
        for mod in self.mods:
            if mod.on == "logits":
                logits = mod(logits, ctx, r_TR)
                if hasattr(mod, "open_E"):
                    open_E = mod.open_E(ctx.step)
        probs = self.norm(logits, ctx)
        choice = logits if getattr(self.select, "on", "scores") == "logits" else probs
        for mod in self.mods:
            if mod.on == "choice":
                choice = mod(choice, ctx, r_TR)
        pairs = self.select(choice, ctx)
        if ctx.valid_T is not None:
            pairs = pairs.where(ctx.valid_T)
        gate_N = self.gate(probs, pairs, ctx.num_tokens)
        routing = _routing(ctx, self.num_experts, pairs, gate_N, logits, probs, open_E)
        if ctx.training and not in_recomputation():
            for mod in self.mods:
                if hasattr(mod, "observe"):
                    mod.observe(routing)
        return routing


def _routing(ctx: TokenContext, num_experts: int, pairs: Pairs, gate_N: Tensor, logits, probs, open_E) -> Routing:
    return Routing(
        tok_N=pairs.tok_N,
        exp_N=pairs.exp_N,
        gate_N=gate_N,
        K=pairs.K,
        num_tokens=ctx.num_tokens,
        num_experts=num_experts,
        logits_TE=logits,
        probs_TE=None if isinstance(probs, tuple) else probs,
        count_E=count_pairs(pairs.exp_N, num_experts),
        shape=ctx.shape,
        valid_T=ctx.valid_T,
        carry_TR=ctx.carry_TR,
        open_E=open_E,
    )


class MoE(nn.Module):
    """A dropless mixture-of-experts layer; every published variant is a choice of parts.

    dim: D, width: F of each expert, num_experts: E. inp: what the router reads. scorer: its logits. norm: logits to
    scores. mods: changes of logits or of the choice, in order. select: who is chosen. gate: weight of each output.
    pool: the experts, None for E of its own with activation `act` and output width `out`; a module given here is
    shared with whoever else holds it. shared: width of a dense network added to every token, or a module.
    aux: objectives, collected by `aux(model)`. taps: metrics, called with every Routing. executor: "auto", or a
    name of nn/dispatch.py.

    Raises: ConfigError, ShapeError, UnknownNameError when built or called wrongly, before any work is done.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        num_experts: int,
        *,
        inp: Part = Hidden(),
        scorer: Part = Linear(),
        norm: Part = Softmax(),
        mods: Sequence[Part] = (),
        select: Part = TopK(2),
        gate: Part = Renorm(),
        pool: nn.Module | None = None,
        act: str = "swiglu",
        out: int | None = None,
        shared: int | nn.Module = 0,
        aux: Sequence[Part] = (),
        taps: Sequence[Part] = (),
        executor: str = "auto",
    ):
        super().__init__()
        parts = {"inp": inp, "scorer": scorer, "norm": norm, "mods": tuple(mods), "select": select, "gate": gate}
        own = {"pool": pool, "act": act, "out": out, "shared": shared, "aux": tuple(aux), "taps": tuple(taps)}
        sizes = {"dim": dim, "width": width, "num_experts": num_experts}
        self.config: dict[str, Any] = {**sizes, **parts, **own, "executor": executor}  # MoE(**config) is a new one
        self.dim, self.executor = dim, executor
        self.router = Router(dim, num_experts, **parts)
        self.pool = Experts(dim, width, num_experts, act=act, out=out) if pool is None else pool
        if self.pool.num_experts != num_experts:
            raise ConfigError("pool", got=f"{self.pool.num_experts} experts", expected=f"{num_experts} experts")
        self.shared = (
            FeedForward(dim, shared, act=act, out=out) if isinstance(shared, int) and shared else shared or None
        )
        self.aux = Parts(part.build(dim, num_experts) for part in aux)
        self.taps = Parts(part.build(dim, num_experts) for part in taps)
        for objective in self.aux:
            if hasattr(objective, "attach"):
                objective.attach(self)
        self.routing: Routing | None = None  # of the last forward pass
        self.step = 0  # optimizer steps, counted by end_step

    def forward(self, x: Tensor, *, context: TokenContext | None = None) -> Tensor:
        """x: [T, D] or [B, L, D]. context: what the router needs besides x, for whole batches of tokens.

        Returns y of x's leading shape. What was decided stands in `self.routing` until the next call.
        """
        if x.ndim not in (2, 3) or x.shape[-1] != self.dim:
            raise ShapeError("x", got=tuple(x.shape), expected=("B", "L", self.dim))
        ctx = self._context(x, context)
        if hasattr(self.pool, "check"):
            self.pool.check(ctx.x_TD)
        routing = self.routing = self.router(ctx)
        y_TO = self.pool(ctx.x_TD, routing, self.executor)
        if self.shared is not None:
            y_TO = y_TO + self.shared(ctx.x_TD)
        if not (ctx.training and in_recomputation()):
            for part in (*self.aux, *self.taps):
                if hasattr(part, "observe"):
                    part.observe(routing, ctx)
        return y_TO.reshape(*x.shape[:-1], y_TO.shape[-1])

    def _context(self, x: Tensor, context: TokenContext | None) -> TokenContext:
        x_TD = x.reshape(-1, self.dim)
        shape = (x.shape[0], x.shape[1]) if x.ndim == 3 else (1, x.shape[0])
        if context is None:
            context = TokenContext(x_TD, shape)
        else:
            context.x_TD = x_TD
            if context.shape[0] * context.shape[1] != len(x_TD):
                raise ShapeError("context.shape", got=context.shape, expected=shape)
            if context.valid_T is not None:
                require_shape("context.valid_T", context.valid_T, (len(x_TD),))
        context.training, context.step = self.training, self.step
        return context

    def end_step(self) -> None:
        """What happens once an optimizer step: prices move, buffers of the batch start again, schedules advance."""
        self.step += 1
        for part in (*self.router.mods, *self.aux, *self.taps, self.router.norm, self.router.inp):
            if hasattr(part, "end_step"):
                part.end_step()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "routing": None}  # a copy does not take the last pass, a graph, with it

    def get_extra_state(self) -> dict[str, int]:
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.step = int(state["step"])


class Parts(nn.Module):
    """A sequence of built parts, those with parameters registered, the others kept as they are."""

    def __init__(self, parts: Iterable[Any]):
        super().__init__()
        self.parts = list(parts)
        for i, part in enumerate(self.parts):
            if isinstance(part, nn.Module):
                self.add_module(str(i), part)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, i: int) -> Any:
        return self.parts[i]


def layers(model: nn.Module) -> dict[str, MoE]:
    """The MoE layers of a model, by their name in it."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MoE)}


def aux_losses(model: nn.Module) -> dict[str, Tensor]:
    """Every auxiliary objective of the last forward pass, weighted: "layer/objective" -> scalar. Add them to the loss.

    Call it once a micro-batch, after its forward pass: objectives over the whole batch count then.
    """
    found = {}
    for name, layer in layers(model).items():
        if layer.routing is None:
            continue
        for i, objective in enumerate(layer.aux):
            label = getattr(objective, "name", type(objective).__name__.lower())
            key = f"{name}/{label}" if name else label
            found[key if key not in found else f"{key}.{i}"] = objective.coef * objective(layer.routing, layer)
    return found


def end_step(model: nn.Module) -> None:
    """Tell every layer that the optimizer has made a step."""
    for layer in layers(model).values():
        layer.end_step()


def routings(model: nn.Module) -> dict[str, Routing]:
    """What each layer decided in the last forward pass."""
    return {name: layer.routing for name, layer in layers(model).items() if layer.routing is not None}
