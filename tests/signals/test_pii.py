"""Personal data: checksums against their definitions, spans that are exact, and near misses left alone."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from polyroute.errors import UnknownNameError
from polyroute.signals.pii import IBAN_LENGTH, KINDS, READ, find_pii, iban_fits, luhn, mask_pii


def iban(country: str, rng: random.Random) -> str:
    """A valid IBAN: check digits worked out from the definition."""
    body = "".join(rng.choice("0123456789") for _ in range(IBAN_LENGTH[country] - 4))
    number = int("".join(str(int(c, 36)) for c in body + country + "00"))
    return f"{country}{98 - number % 97:02d}{body}"


def card(rng: random.Random, prefix: str = "4", length: int = 16) -> str:
    body = prefix + "".join(rng.choice("0123456789") for _ in range(length - 1 - len(prefix)))
    return next(body + d for d in "0123456789" if luhn(body + d))


def test_exactly_one_check_digit_of_ten_fits():
    rng = random.Random(0)
    for _ in range(50):
        body = "".join(rng.choice("0123456789") for _ in range(15))
        assert sum(luhn(body + digit) for digit in "0123456789") == 1
    assert luhn("79927398713")  # the textbook's example
    assert not luhn("79927398710")


@pytest.mark.parametrize(
    "written", ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "FR1420041010050500013M02606"]
)
def test_textbook_ibans_fit_and_no_changed_digit_does(written):
    assert iban_fits(written)
    plain = written.replace(" ", "")
    for i, c in enumerate(plain):
        if c.isdigit():
            assert not iban_fits(plain[:i] + str((int(c) + 1) % 10) + plain[i + 1 :])


def test_every_country_has_ibans_that_are_found():
    rng = random.Random(1)
    for country in IBAN_LENGTH:
        written = iban(country, rng)
        spaced = " ".join(written[i : i + 4] for i in range(0, len(written), 4))
        for form in (written, spaced):
            text = f"Please pay to {form} by Friday."
            (found,) = find_pii(text, kinds=["iban"])
            assert text[found.start : found.end] == form


FOUND = [
    ("email", "write to jane.doe+news@mail.example.co.uk today", "jane.doe+news@mail.example.co.uk"),
    ("card", "my card is 4111 1111 1111 1111.", "4111 1111 1111 1111"),
    ("card", "amex 378282246310005 ok", "378282246310005"),
    ("ssn", "SSN: 123-45-6789", "123-45-6789"),
    ("ip", "the server 8.8.8.8 answers", "8.8.8.8"),
    ("ip", "at 2001:4860:4860::8888 it is", "2001:4860:4860::8888"),
    ("phone", "call me at (415) 555-2671 tomorrow", "(415) 555-2671"),
    ("phone", "+49 151 2345 6789", "+49 151 2345 6789"),
    ("phone", "+49 30 123456 at work", "+49 30 123456"),
    ("phone", "ring +4915123456789 now", "+4915123456789"),
    ("key", "export OPENAI_API_KEY=sk-proj-abcdefghijklmnopqrstuvwx1234", "sk-proj-abcdefghijklmnopqrstuvwx1234"),
    ("key", "AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("key", "token ghp_" + "a1B2" * 9, "ghp_" + "a1B2" * 9),
    ("key", "password: hunter2hunter2", "hunter2hunter2"),
    ("key", "-----BEGIN RSA PRIVATE KEY-----\nMIIE", "-----BEGIN RSA PRIVATE KEY-----"),
]


@pytest.mark.parametrize(("kind", "text", "value"), FOUND)
def test_found_with_its_exact_span(kind, text, value):
    (found,) = find_pii(text)
    assert (found.kind, text[found.start : found.end]) == (kind, value)
    assert 0.6 <= found.confidence <= 1


@pytest.mark.parametrize(
    "text",
    [
        "", "What is 2+2?", "In 2010-2011 he scored 1,234,567.89 points", "4111 1111 1111 1112 is no card",
        "version 1.2.3 and section 10.4.2.1 of the manual", "0000 0000 0000 0000", "pi is 3.14159265358979",
        "ISBN 978-3-16-148410-0", "call(10, 20, 30) in def f(a@b)", "the ratio 100:200:300", "DE00370400440532013000",
        "000-12-3456 and 666-12-3456 and 900-12-3456", "std::vector<int> x", "12:30:45", "1234567890123456",
        "the password is a secret", "tokens per second: 1000", "@user mentioned it", "::",
        "uuid 123e4567-e89b-12d3-a456-426614174000",
    ],
)  # fmt: skip
def test_near_misses_are_left_alone(text):
    assert find_pii(text) == []


def test_cards_of_the_networks_are_found_and_other_numbers_that_fit_are_not():
    rng = random.Random(2)
    for prefix, length in (("4", 16), ("51", 16), ("2221", 16), ("34", 15), ("6011", 16)):
        assert [f.kind for f in find_pii(f"no. {card(rng, prefix, length)}")] == ["card"]
    assert find_pii(f"order {card(rng, '9', 16)}", kinds=["card"]) == []


def test_findings_are_ordered_and_do_not_overlap():
    text = "; ".join(text for _, text, _ in FOUND)
    found = find_pii(text)
    assert len(found) == len(FOUND)
    assert all(a.end <= b.start for a, b in pairwise(found))


def test_masking_numbers_values_and_keeps_the_rest():
    text = "a@x.org wrote to b@x.org, cc a@x.org, from 8.8.8.8"
    assert mask_pii(text) == "[EMAIL_1] wrote to [EMAIL_2], cc [EMAIL_1], from [IP_1]"
    assert mask_pii("nothing here") == "nothing here"
    for _, text, value in FOUND:
        assert value not in mask_pii(text)
        assert find_pii(mask_pii(text)) == []


def test_kinds_and_confidence_choose():
    text = "a@x.org at 9.9.9.9"
    assert [f.kind for f in find_pii(text, kinds=["ip"])] == ["ip"]
    assert [f.kind for f in find_pii(text, least=0.95)] == ["email"]
    with pytest.raises(UnknownNameError, match="Did you mean 'email'"):
        find_pii(text, kinds=["e-mail"])
    assert set(KINDS) == {"email", "phone", "card", "iban", "key", "ssn", "ip"}


@pytest.mark.parametrize(
    "unit", ["\ud800", "1", "a@", "1-", "a:", "(", "+1 ", "sk-", "token ", "eyJ.", "A1", "1.1.", "ü"]
)
def test_any_text_of_any_length_is_read(unit):
    find_pii(unit * 3)
    text = unit * (READ // len(unit) + 10)
    assert all(0 <= f.start < f.end <= len(text) for f in find_pii(text))


def test_the_tail_of_a_long_text_is_read_at_its_place():
    text = "x " * READ + "a@x.org"
    (found,) = find_pii(text)
    assert text[found.start : found.end] == "a@x.org"
