"""A small trainer and the readouts every mechanism is judged by: loss, load, information, active arithmetic.

    corpus = Chars(length=64)
    with seeded(0):
        model = TinyLM(corpus.vocab, 64, 2, 4, lambda layer: MoE(64, 128, 8, aux=[LBL(0.01)]))
    history = train(model, batches(corpus, 16, seed=0), steps=500, seed=0)
    readout = evaluate(model, batches(Chars(length=64, held_out=True), 16, seed=1))

The same seeds give the same numbers, to the bit, on one machine with one number of threads; not between machines.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyroute.errors import ConfigError
from polyroute.nn.corpora import IGNORE, Batch
from polyroute.nn.metrics import fluctuation, max_vio, mutual_information
from polyroute.nn.moe import aux_losses, end_step, layers, routings
from polyroute.nn.routing import Routing
from polyroute.nn.transformer import Attention

Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(kw_only=True)
class History:
    """What happened in training, a value for each optimizer step."""

    seed: int
    lr: float
    num_parameters: int
    loss: list[float] = field(default_factory=list)  # of the task: nats or squared error, mean of the micro-batches
    aux: dict[str, list[float]] = field(default_factory=dict)  # "layer/objective" -> weighted value
    grad_norm: list[float] = field(default_factory=list)  # before clipping
    ms: list[float] = field(default_factory=list)  # wall clock
    load_every: int = 10
    load: dict[str, list[list[int]]] = field(default_factory=dict)  # layer -> [records, E] pairs of `load_every` steps

    def last(self, steps: int = 20) -> float:
        """Mean loss of the last steps."""
        part = self.loss[-steps:]
        return sum(part) / max(len(part), 1)

    def shares(self) -> dict[str, list[float]]:
        """Each layer's load by expert over the last full record, as shares of 1."""
        found = {}
        for layer, records in self.load.items():
            total = sum(records[-1])
            found[layer] = [count / max(total, 1) for count in records[-1]]
        return found

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON's types, with torch's version."""
        return {**asdict(self), "torch": torch.__version__, "threads": torch.get_num_threads()}


@dataclass(frozen=True, kw_only=True)
class Readout:
    """A model on a fixed number of tokens, nothing trained."""

    loss: float  # mean over what was asked: nats or squared error
    bits: float | None  # loss in bits, for ids
    accuracy: float | None  # for ids
    domain_loss: dict[int, float]
    tokens: int
    max_vio: dict[str, float]  # layer -> busiest expert over the mean, minus 1
    information: dict[str, float]  # layer -> nats between a token's domain and its experts
    mean_k: dict[str, float]  # layer -> experts a token
    flops: float  # of the forward pass, a token

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's own generator starts from this seed inside, and is as before afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def task_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean over the tokens that are asked: cross entropy of ids in nats, squared error of numbers."""
    out = model(batch.x)
    if not batch.y.is_floating_point():
        return F.cross_entropy(out.flatten(0, 1), batch.y.flatten(), ignore_index=IGNORE)
    asked = ~batch.y.isnan()
    return F.mse_loss(out, batch.y) if bool(asked.all()) else F.mse_loss(out[asked], batch.y[asked])


def adamw(model: nn.Module, lr: float = 3e-3, *, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW over what is trained, in one fused pass; decay for matrices only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.98), fused=True)


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    steps: int,
    lr: float = 3e-3,
    seed: int,
    micro: int = 1,
    loss: Loss = task_loss,
    optimizer: torch.optim.Optimizer | None = None,
    warmup: float = 0.05,
    floor: float = 0.1,
    clip: float = 1.0,
    seconds: float | None = None,
    on_step: Callable[[int, History], None] | None = None,
    progress: bool | None = None,
    load_every: int = 10,
) -> History:
    """Train in place: AdamW, a linear warm-up over the share `warmup`, a cosine down to `floor` x lr.

    micro: batches an optimizer step; each is a forward and backward pass with its own auxiliary losses. loss: another
    one, given batches on the model's device. optimizer: to go on with one (its learning rate is set here). seconds:
    stop after so much time; the cosine then follows the clock, and numbers no longer repeat. on_step(step, history):
    after each step, when gradients still stand. progress: a line on stderr; None: only on a terminal.

    Raises: ConfigError, also when `batches` end before the last step or the loss is not finite.
    """
    if steps < 1 or micro < 1:
        raise ConfigError("steps, micro", got=(steps, micro), expected="1 and more each")
    optimizer = adamw(model, lr) if optimizer is None else optimizer
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    num_parameters = sum(p.numel() for p in model.parameters())
    history = History(seed=seed, lr=lr, num_parameters=num_parameters, load_every=load_every)
    source, counted, start = iter(batches), {}, time.perf_counter()
    model.train()
    with seeded(seed), _Line(steps, progress) as line:
        for step in range(steps):
            began = time.perf_counter()
            done = step / steps if seconds is None else max(step / steps, (began - start) / seconds)
            if done >= 1.0:
                break
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule(done, steps, warmup, floor)
            optimizer.zero_grad(set_to_none=True)
            _backward(model, source, micro, loss, history, counted)
            history.grad_norm.append(float(nn.utils.clip_grad_norm_(trained, clip)))
            optimizer.step()
            end_step(model)
            history.ms.append((time.perf_counter() - began) * 1e3)
            if (step + 1) % load_every == 0 or step + 1 == steps:
                _record(history, counted)
            if on_step is not None:
                on_step(step, history)
            line.at(step + 1, history.loss[-1])
    _record(history, counted)
    return history


def schedule(done: float, steps: int, warmup: float, floor: float) -> float:
    """The learning rate as a share of its peak. done: share of the training that is over; steps: of how many."""
    rise = min((done + 1.0 / steps) / max(warmup, 1e-9), 1.0)
    return rise * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done)))


def _backward(
    model: nn.Module, source: Iterator[Batch], micro: int, loss: Loss, history: History, counted: dict[str, Tensor]
) -> None:
    """Forward and backward passes of one step; what they gave goes to history and counted."""
    total, aux_total = 0.0, dict[str, float]()
    for _ in range(micro):
        batch = next(source, None)
        if batch is None:
            raise ConfigError("batches", got=f"an end after {len(history.loss)} steps", expected="enough for all steps")
        task = loss(model, _near(batch, model))
        aux = aux_losses(model)
        (sum(aux.values(), task) / micro).backward()
        total += float(task.detach()) / micro
        for name, value in aux.items():
            aux_total[name] = aux_total.get(name, 0.0) + float(value.detach()) / micro
        for name, routing in routings(model).items():
            counted[name] = counted[name] + routing.count_E if name in counted else routing.count_E.clone()
    if not math.isfinite(total):
        raise ConfigError("loss", got=total, expected="a finite number", hint="Lower lr, or look at the batches.")
    history.loss.append(total)
    for name, value in aux_total.items():
        history.aux.setdefault(name, []).append(value)


def _record(history: History, counted: dict[str, Tensor]) -> None:
    for name, count_E in counted.items():
        history.load.setdefault(name, []).append(count_E.tolist())
    counted.clear()


def evaluate(model: nn.Module, batches: Iterable[Batch], *, min_tokens: int = 10_000) -> Readout:
    """Read batches until `min_tokens` tokens are judged or none is left; the model is not changed.

    Loads of fewer than about 10,000 tokens are noise. Raises: ConfigError without any batch.
    """
    losses, hits, domains, tokens, load = [], [], [], 0, dict[str, _Load]()
    for batch, out in _read(model, batches, min_tokens):
        each_BL, hit_BL = _judge(out, batch)
        losses.append(each_BL.flatten())
        hits.append(hit_BL.flatten())
        domain_T = batch.domain_B.repeat_interleave(each_BL.shape[1])
        domains.append(domain_T)
        tokens += len(domain_T)
        for name, routing in routings(model).items():
            load.setdefault(name, _Load()).add(routing, domain_T)
    if not tokens:
        raise ConfigError("batches", got="no batch", expected="at least one")
    loss_T, domain_T = torch.cat(losses), torch.cat(domains)
    asked_T = ~loss_T.isnan()
    loss, ids = float(loss_T[asked_T].mean()), not batch.y.is_floating_point()
    mean_k = {name: layer.mean_k() for name, layer in load.items()}
    return Readout(
        loss=loss,
        bits=loss / math.log(2) if ids else None,
        accuracy=float(torch.cat(hits)[asked_T].float().mean()) if ids else None,
        domain_loss={int(d): float(loss_T[asked_T & (domain_T == d)].mean()) for d in domain_T.unique()},
        tokens=tokens,
        max_vio={name: max_vio(layer.count_E) for name, layer in load.items()},
        information={name: mutual_information(*layer.pairs()) for name, layer in load.items()},
        mean_k=mean_k,
        flops=active_flops(model, mean_k, length=batch.x.shape[1]),
    )


def routes(model: nn.Module, batches: Iterable[Batch], *, min_tokens: int = 10_000) -> dict[str, Tensor]:
    """The likeliest expert of every token in each layer: layer -> [tokens]. Pass a list to read the same text again."""
    found: dict[str, list[Tensor]] = {}
    for _ in _read(model, batches, min_tokens):
        for name, routing in routings(model).items():
            found.setdefault(name, []).append(routing.top1_T().clone())
    return {name: torch.cat(parts) for name, parts in found.items()}


def fluctuation_between(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Share of (token, layer) places whose likeliest expert differs between two `routes` of the same text, 0 to 1."""
    if set(before) != set(after) or not before:
        raise ConfigError("after", got=sorted(after), expected=f"the layers of before: {sorted(before)}")
    return fluctuation(torch.cat([before[name] for name in before]), torch.cat([after[name] for name in before]))


def active_flops(model: nn.Module, mean_k: Mapping[str, float], *, length: int) -> float:
    """Floating point operations of a forward pass for a token: 2 for each weight it meets, and causal attention.

    mean_k: experts a token of each MoE layer. length: L of the sequences, half of which a token attends to.
    """
    total, inside = 0.0, set()
    for name, layer in layers(model).items():
        inside |= {id(p) for p in layer.parameters()}
        pool = sum(p.numel() for p in layer.pool.parameters())
        router = sum(p.numel() for p in layer.router.parameters() if p.ndim >= 2)
        shared = sum(p.numel() for p in layer.shared.parameters()) if layer.shared is not None else 0
        total += 2.0 * (mean_k.get(name, 0.0) * pool / layer.pool.num_experts + router + shared)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            inside |= {id(p) for p in module.parameters(recurse=False)}
        if isinstance(module, Attention):
            total += 4.0 * module.out.in_features * (length + 1) / 2
    return total + 2.0 * sum(p.numel() for p in model.parameters() if p.ndim >= 2 and id(p) not in inside)


def _read(model: nn.Module, batches: Iterable[Batch], min_tokens: int) -> Iterator[tuple[Batch, Tensor]]:
    """(batch, what the model says of it), without training, until enough tokens are read."""
    training, tokens = model.training, 0
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                batch = _near(batch, model)
                yield batch, model(batch.x)
                tokens += batch.x.shape[0] * batch.x.shape[1]
                if tokens >= min_tokens:
                    break
    finally:
        model.train(training)


def _near(batch: Batch, model: nn.Module) -> Batch:
    """The batch on the model's device."""
    device = next(model.parameters()).device
    return Batch(*(part.to(device, non_blocking=True) for part in batch))


def _judge(out: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(loss, NaN where nothing is asked; whether the likeliest id is right), both [B, L]."""
    if batch.y.is_floating_point():
        loss = (out - batch.y).square().mean(-1)
        return loss, torch.zeros_like(loss, dtype=torch.bool)
    y_T = batch.y.flatten()
    each_T = F.cross_entropy(out.flatten(0, 1), y_T, ignore_index=IGNORE, reduction="none")
    return each_T.masked_fill(y_T == IGNORE, math.nan).view_as(batch.y), out.argmax(-1) == batch.y


class _Load:
    """Counts of one layer over several batches."""

    def __init__(self) -> None:
        self.tokens, self.domain, self.expert = 0, list[Tensor](), list[Tensor]()
        self.count_E: Tensor | None = None

    def add(self, routing: Routing, domain_T: Tensor) -> None:
        self.count_E = routing.count_E.clone() if self.count_E is None else self.count_E + routing.count_E
        self.tokens += routing.num_valid()
        self.domain.append(domain_T[routing.tok_N])
        self.expert.append(routing.exp_N)

    def mean_k(self) -> float:
        return float(self.count_E.sum()) / max(self.tokens, 1)

    def pairs(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self.domain), torch.cat(self.expert)


class _Line:
    """Steps and loss on stderr: redrawn on a terminal, a plain line every 10 s elsewhere. Quiet for a second."""

    def __init__(self, steps: int, show: bool | None):
        self.terminal = sys.stderr.isatty()
        self.steps, self.show = steps, self.terminal if show is None else show
        self.next_at, self.width = time.monotonic() + 1.0, 0

    def at(self, done: int, loss: float) -> None:
        if not self.show or (now := time.monotonic()) < self.next_at:
            return
        self.next_at = now + (0.1 if self.terminal else 10.0)
        line = f"training: {done:,} of {self.steps:,}  loss {loss:.3f}"
        print(f"\r{line:<{self.width}}" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr)
        sys.stderr.flush()
        self.width = len(line)

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.terminal and self.width:
            print("\r" + " " * self.width + "\r", end="", file=sys.stderr, flush=True)
