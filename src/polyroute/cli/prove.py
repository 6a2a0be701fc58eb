"""polyroute prove ID: run one system's proof; exit 0 only if its effect holds and its falsifier fails."""

from __future__ import annotations

import argparse
import json

from polyroute.cli.arguments import seed_of
from polyroute.proofs.proof import Effect, Proof
from polyroute.proofs.systems import find_system, load_systems, proof_of


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    p = commands.add_parser("prove", help="run the proof of one system", epilog="example: polyroute prove 16 --seed 7")
    p.add_argument("id", help="id or name, see `polyroute systems`")
    p.add_argument("--seed", type=seed_of, default=0, help="first of the seeds to run (default: %(default)s)")
    p.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    system = find_system(args.id, load_systems())
    proof = proof_of(system)(args.seed)
    show(proof)
    print(json.dumps(proof.as_json(), default=float))
    return 0 if proof.passed else 1


def show(proof: Proof) -> None:
    """The proof as a table for people."""
    print(f"{proof.id} {proof.name}: {proof.claim}")
    print(f"baseline: {proof.baseline}; seeds: {', '.join(map(str, proof.seeds))}")
    if proof.rows:
        names = list(proof.rows[0])
        cells = [names, *([shown(row.get(name)) for name in names] for row in proof.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
        for line in cells:
            print("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    for effect in proof.effects:
        print(f"effect     {line_of(effect)}")
    print(f"falsifier  {line_of(proof.falsifier)} (must not hold)")
    if proof.notes:
        print(proof.notes)
    print("PASSED" if proof.passed else "FAILED")


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def line_of(effect: Effect) -> str:
    verdict = "holds" if effect.holds else "does not hold"
    return f"{effect.name}: {effect.value:+.4g} {effect.unit} [{effect.low:+.4g}, {effect.high:+.4g}]: {verdict}"
