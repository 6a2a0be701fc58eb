"""Signals of a request: the text to route on, its vector, what it needs, how many tokens it has.

conversation.routing_text(messages) -> text      the last turns, without what a harness added
featuriser("static-1")([text]) -> [n, d]         a vector a text, from a named and versioned featuriser
is_quick(featuriser, text) -> bool               may an event loop call it, or does it belong in a thread?
needs.needs_of(messages, tools=...) -> names     capabilities a candidate must offer
tokens.count_tokens(text) -> number              prompt tokens, near enough for a price
pii.find_pii(text), injection.injection(text)    what a guard looks for
language.language_of(text) -> code               the language, or `und`
surface.surface(text) -> [DIM]                   what the text looks like
"""

from __future__ import annotations

from polyroute.signals.embed import FEATURISERS, featuriser, is_quick

__all__ = ["FEATURISERS", "featuriser", "is_quick"]
