"""Train a mixture-of-experts language model of 2 million parameters on generated text, and see who reads what.

python examples/train_moe.py --seconds 60 --out routing
"""

import argparse
import json
from pathlib import Path

from polyroute.nn.chars import Chars, decode
from polyroute.nn.corpora import batches
from polyroute.nn.losses import LBL
from polyroute.nn.moe import MoE
from polyroute.nn.plots import plot_depth, plot_load, plot_loss, plot_tokens
from polyroute.nn.testbed import History, evaluate, routes, seeded, train
from polyroute.nn.transformer import TinyLM

LENGTH, DIM, LAYERS, EXPERTS = 64, 128, 4, 16


def show(step: int, history: History) -> None:
    """A line now and then: loss, and the load of each layer's busiest expert over the mean load."""
    if (step + 1) % 20 == 0:
        load = " ".join(f"{EXPERTS * max(share):.2f}" for share in history.shares().values())
        print(f"{sum(history.ms) / 1e3:4.0f} s  step {step + 1:4}  loss {history.last():.3f}  load {load}", flush=True)


def main() -> int:
    options = argparse.ArgumentParser(description="Train a small mixture-of-experts language model.")
    options.add_argument("--seconds", type=float, default=60.0, help="of training (default: %(default)s)")
    options.add_argument("--out", type=Path, default=Path("routing"), help="folder of the plots (default: %(default)s)")
    arguments, known, unseen = options.parse_args(), Chars(LENGTH), Chars(LENGTH, held_out=True)
    with seeded(0):
        model = TinyLM(known.vocab, DIM, LAYERS, 2, lambda layer: MoE(DIM, 72, EXPERTS, aux=[LBL(0.01)]))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, 2 of {EXPERTS} experts a character and layer")
    stream = batches(known, 16, seed=0)
    history = train(model, stream, steps=10**6, seconds=arguments.seconds, seed=0, on_step=show, progress=False)

    found, sample = evaluate(model, batches(unseen, 16, seed=1)), next(batches(unseen, 12, seed=2))
    losses = ", ".join(f"{unseen.domains[domain]} {loss:.2f}" for domain, loss in found.domain_loss.items())
    print(f"{len(history.loss)} steps; text it has not seen: {found.loss:.2f} nats a character; {losses}")
    for layer, (excess, information) in enumerate(zip(found.max_vio.values(), found.information.values(), strict=True)):
        print(f"layer {layer}: load {excess + 1:.2f}, the experts tell {information:.2f} nats about the domain")
    arguments.out.mkdir(parents=True, exist_ok=True)
    top, text = routes(model, [sample]), decode(sample.x.flatten())
    first = {name: expert_T[:LENGTH] for name, expert_T in top.items()}
    plot_load(arguments.out / "load.png", history.shares())
    plot_loss(arguments.out / "loss.png", history)
    plot_depth(arguments.out / "depth.png", first, EXPERTS, text=text[:LENGTH])
    plot_tokens(arguments.out / "tokens.png", text, list(top.values())[-1], EXPERTS)
    (arguments.out / "history.json").write_text(json.dumps(history.as_json() | {"readout": found.as_json()}))
    print(f"wrote load.png, loss.png, depth.png, tokens.png and history.json to {arguments.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
