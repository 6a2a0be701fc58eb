"""A mixture-of-experts layer put together from parts, and what a training loop needs of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyroute.errors import ConfigError, ShapeError, UnknownNameError
from polyroute.nn.experts import Experts, FeedForward
from polyroute.nn.gates import ChosenSoftmax, Renorm
from polyroute.nn.inputs import Hidden
from polyroute.nn.normalise import ProductLogSoftmax, Softmax
from polyroute.nn.routing import (
    Pairs,
    Part,
    Routing,
    TokenContext,
    built,
    count_pairs,
    in_recomputation,
    require_finite,
    require_mask,
    require_size,
    sequence_of,
)
from polyroute.nn.scorers import Linear, ProductKeys
from polyroute.nn.selection import ProductTopK, TopK


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
        require_size("dim", dim)
        require_size("num_experts", num_experts)
        mods = sequence_of("mods", mods)
        self.num_experts = num_experts
        self.inp = built("inp", inp, dim, num_experts)
        width = getattr(self.inp, "width", dim)
        self.scorer = built("scorer", scorer, width, num_experts)
        self.norm = built("norm", norm, width, num_experts)
        self.mods = Parts(built(f"mods[{i}]", mod, width, num_experts) for i, mod in enumerate(mods))
        self.select = built("select", select, width, num_experts)
        self.gate = built("gate", gate, width, num_experts)
        _require_alike(scorer, norm, mods, select)
        if _at_most_one(self.select) and isinstance(self.gate, Renorm | ChosenSoftmax):
            warnings.warn(
                f"{type(gate).__name__} with one expert a token gives a constant gate: the router learns nothing from "
                "the task. "
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
        if len(self.mods):
            require_finite("scores, after mods", probs)
        choice = logits if getattr(self.select, "on", "scores") == "logits" else probs
        for mod in self.mods:
            if mod.on == "choice":
                choice = mod(choice, ctx, r_TR)
                choice = choice if open_E is None else choice.masked_fill(~open_E, -torch.inf)  # whatever its price
        pairs = self.select(choice, ctx)
        if open_E is not None:
            pairs = _of_open(pairs, open_E)
        if ctx.valid_T is not None:
            pairs = pairs.where(ctx.valid_T)
        gate_N = self.gate(probs, pairs, ctx.num_tokens)
        routing = _routing(ctx, self.num_experts, pairs, gate_N, logits, probs, open_E)
        if ctx.training and not in_recomputation():
            for mod in self.mods:
                if hasattr(mod, "observe"):
                    mod.observe(routing)
        return routing


def _require_alike(scorer: Any, norm: Any, mods: tuple[Any, ...], select: Any) -> None:
    """Raise ConfigError where our own parts for two scores an expert (product keys) meet those for one."""
    pairs = {"scorer": (scorer, ProductKeys), "norm": (norm, ProductLogSoftmax), "select": (select, ProductTopK)}
    if not any(isinstance(part, kind) for part, kind in pairs.values()):
        return
    wrong = [(name, part, kind.__name__) for name, (part, kind) in pairs.items() if not isinstance(part, kind)]
    wrong += [(f"mods[{i}]", mod, "none: product keys have two scores") for i, mod in enumerate(mods)]
    for name, part, wanted in wrong:
        if type(part).__module__.startswith("polyroute.nn."):
            hint = "ProductKeys, ProductLogSoftmax and ProductTopK go together."
            raise ConfigError(name, got=type(part).__name__, expected=wanted, hint=hint)


def _at_most_one(select: Any) -> bool:
    """Whether a selection never gives a token more than one expert."""
    inner = getattr(select, "inner", None)
    k = getattr(select, "k", getattr(select, "k_max", None))
    return k == 1 or (inner is not None and _at_most_one(inner))


def _of_open(pairs: Pairs, open_E: Tensor) -> Pairs:
    """Without closed experts, which are chosen where fewer are open than asked for."""
    kept_N = open_E[pairs.exp_N]
    return pairs if bool(kept_N.all()) else Pairs(pairs.tok_N[kept_N], pairs.exp_N[kept_N], None)


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
        mods, aux, taps = sequence_of("mods", mods), sequence_of("aux", aux), sequence_of("taps", taps)
        if not isinstance(shared, nn.Module):
            require_size("shared", shared, least=0)
        parts = {"inp": inp, "scorer": scorer, "norm": norm, "mods": mods, "select": select, "gate": gate}
        own = {"pool": pool, "act": act, "out": out, "shared": shared, "aux": aux, "taps": taps}
        sizes = {"dim": dim, "width": width, "num_experts": num_experts}
        self.config: dict[str, Any] = {**sizes, **parts, **own, "executor": executor}  # MoE(**config) is a new one
        self.dim, self.executor = dim, executor
        self.router = Router(dim, num_experts, **parts)
        self.pool = Experts(dim, width, num_experts, act=act, out=out) if pool is None else pool
        if getattr(self.pool, "num_experts", None) != num_experts:
            got = f"{getattr(self.pool, 'num_experts', type(self.pool).__name__)} experts"
            raise ConfigError("pool", got=got, expected=f"{num_experts} experts")
        known = getattr(self.pool, "executors", None)
        if known is not None and executor not in ("auto", *known):
            raise UnknownNameError("executor", executor, known)
        self.shared = (
            shared if isinstance(shared, nn.Module) else FeedForward(dim, shared, act=act, out=out) if shared else None
        )
        self.aux = Parts(built(f"aux[{i}]", part, dim, num_experts) for i, part in enumerate(aux))
        self.taps = Parts(built(f"taps[{i}]", part, dim, num_experts) for i, part in enumerate(taps))
        for objective in self.aux:
            if hasattr(objective, "attach"):
                objective.attach(self)
        self.routing: Routing | None = None  # of the last forward pass
        self.step = 0  # optimizer steps, counted by end_step

    def forward(self, x: Tensor, *, context: TokenContext | None = None) -> Tensor:
        """x: [T, D] or [B, L, D]. context: what the router needs besides x, for whole batches of tokens.

        Returns y of x's leading shape. What was decided stands in `self.routing` until the next call.
        """
        if not isinstance(x, Tensor):
            raise ConfigError("x", got=type(x).__name__, expected="a tensor [T, D] or [B, L, D]")
        if x.ndim not in (2, 3) or x.shape[-1] != self.dim:
            raise ShapeError("x", got=tuple(x.shape), expected=("B", "L", self.dim))
        ctx = self._context(x, context)
        if hasattr(self.pool, "check"):
            self.pool.check(ctx.x_TD)
        routing = self.routing = self.router(ctx)
        y_TO = self.pool(ctx.x_TD, routing, self.executor)
        if self.shared is not None:
            dense_TO = self.shared(ctx.x_TD)
            if dense_TO.ndim and dense_TO.shape != y_TO.shape:
                raise ShapeError("output of shared", got=tuple(dense_TO.shape), expected=tuple(y_TO.shape))
            y_TO = y_TO + dense_TO
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
            if context.shape[0] * context.shape[1] != len(x_TD) or (x.ndim == 3 and tuple(context.shape) != shape):
                raise ShapeError("context.shape", got=context.shape, expected=shape)
            if context.valid_T is not None:
                require_mask("context.valid_T", context.valid_T, (len(x_TD),))
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
