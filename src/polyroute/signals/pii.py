"""Personal data and secrets in a text, found by form and checksum, and masked.

No model and no dictionary: names and postal addresses are not found. What has a checksum is believed when it fits
(cards, IBAN); what only has a form is believed less, more where a word beside it says what it is.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from polyroute.errors import UnknownNameError

READ = 200_000  # characters looked at
NEAR = 40  # characters before a finding in which a word may say what it is


class Finding(NamedTuple):
    """One piece of personal data. text[start:end] is it; confidence 0..1 is a judgement, not a frequency."""

    kind: str
    start: int
    end: int
    confidence: float


EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9][\w.+%-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w-])"
)
CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-]|\.\d)")
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![A-Za-z0-9])")
SSN = re.compile(r"(?<![\w.-])(\d{3})-(\d{2})-(\d{4})(?![\w-]|\.\d)")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
PHONE = re.compile(
    r"(?<![\w.+/-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?)?\d{2,4}(?:[ .-]\d{2,8}){1,4}(?![\w/-]|[.,]\d)"
    r"|(?<!\w)\+\d{8,15}(?!\w)"
)
KEYS: tuple[tuple[str, str, float], ...] = (  # what must be in the text, form of a secret, confidence
    ("PRIVATE KEY", r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----", 0.99),
    ("sk-", r"\bsk-(?:proj-|ant-|svcacct-|or-v1-)?[A-Za-z0-9_-]{20,200}", 0.95),
    ("AKIA", r"\bAKIA[0-9A-Z]{16}\b", 0.95),
    ("ASIA", r"\bASIA[0-9A-Z]{16}\b", 0.95),
    ("gh", r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b", 0.98),
    ("github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{22,255}\b", 0.98),
    ("glpat-", r"\bglpat-[A-Za-z0-9_-]{20,64}", 0.95),
    ("xox", r"\bxox[abprs]-[A-Za-z0-9-]{10,250}", 0.95),
    ("AIza", r"\bAIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])", 0.95),
    ("hf_", r"\bhf_[A-Za-z0-9]{30,64}\b", 0.95),
    ("k_", r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,128}\b", 0.95),
    ("eyJ", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{10,}", 0.9),
)
SECRET = [(mark, re.compile(form), sure) for mark, form, sure in KEYS]
SAID = re.compile(r"(?i)\b(?:api[_ -]?key|secret|token|passw(?:or)?d|bearer)")
GIVEN = re.compile(  # after such a word: its value, with letters and digits in it
    r"[\w -]{0,12}?(?:is\s|[:=])?\s{0,3}[\"']?"
    r"((?=[^\s\"']*\d)(?=[^\s\"']*[A-Za-z])[A-Za-z0-9_\-./+=!@#$%^&*]{12,200})"
)
HINTS = {  # kind -> words that say so when they stand before the number
    "phone": re.compile(
        r"(?i)\b(?:phone|tel|telephone|mobile|cell|call|fax|whatsapp|sms|text me|reach me|handy|telefon|tél)\b"
    ),
    "ssn": re.compile(r"(?i)\b(?:ssn|social security)\b"),
    "card": re.compile(r"(?i)\b(?:card|visa|mastercard|amex|credit|debit)\b"),
}
IBAN_LENGTH = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LI": 21, "LT": 20, "LU": 20,
    "LV": 21, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18, "NO": 15, "PK": 24,
    "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SE": 24, "SI": 19, "SK": 24, "SM": 27,
    "TN": 24, "TR": 26, "UA": 29, "VG": 24, "XK": 20,
}  # fmt: skip


def luhn(digits: str) -> bool:
    """Does the check digit of a card number fit?"""
    total = 0
    for i, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + i % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def iban_fits(written: str) -> bool:
    """Is this an IBAN: the country's length, and remainder 1 modulo 97?"""
    plain = written.replace(" ", "").upper()
    if IBAN_LENGTH.get(plain[:2]) != len(plain):
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def hinted(kind: str, text: str, start: int) -> bool:
    """Does a word before the finding say what it is?"""
    return bool(HINTS[kind].search(text, max(0, start - NEAR), start))


def cards(text: str) -> Iterator[Finding]:
    for found in CARD.finditer(text):
        digits = re.sub(r"\D", "", found.group())
        issued = digits[0] in "3456" or "2221" <= digits[:4] <= "2720"  # the networks' first digits
        if issued and luhn(digits) and len(set(digits)) > 1:
            yield Finding("card", *found.span(), 0.99 if hinted("card", text, found.start()) else 0.9)


def ibans(text: str) -> Iterator[Finding]:
    for found in IBAN.finditer(text):
        written = found.group()
        most = IBAN_LENGTH.get(written[:2], 0)
        end = kept = 0
        while end < len(written) and kept < most:  # the pattern may have run on into the next word
            kept += written[end] != " "
            end += 1
        if kept == most and iban_fits(written[:end]) and (end == len(written) or written[end] == " "):
            yield Finding("iban", found.start(), found.start() + end, 0.99)


def emails(text: str) -> Iterator[Finding]:
    for found in EMAIL.finditer(text):
        local = found.group().split("@")[0]
        if ".." not in local and not local.endswith("."):
            yield Finding("email", *found.span(), 0.98)


def social_security(text: str) -> Iterator[Finding]:
    for found in SSN.finditer(text):
        area, group, serial = found.groups()
        if area not in ("000", "666") and area < "900" and group != "00" and serial != "0000":
            yield Finding("ssn", *found.span(), 0.95 if hinted("ssn", text, found.start()) else 0.7)


def addresses(text: str) -> Iterator[Finding]:
    for form, mark in ((IPV4, "."), (IPV6, ":")):
        if mark not in text:
            continue
        for found in form.finditer(text):
            try:
                address = ipaddress.ip_address(found.group())
            except ValueError:
                continue
            if not (address.is_loopback or address.is_unspecified) and (form is IPV4 or len(found.group()) > 6):
                yield Finding("ip", *found.span(), 0.9 if address.is_global else 0.5)


def phones(text: str) -> Iterator[Finding]:
    for found in PHONE.finditer(text):
        written = found.group()
        count = sum(c.isdigit() for c in written)
        abroad = written.startswith("+")
        plain = re.fullmatch(r"(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}", written) is not None
        if not 8 <= count <= 15:
            continue
        said = hinted("phone", text, found.start())
        if abroad or plain or said:
            yield Finding("phone", *found.span(), 0.95 if abroad and said else 0.9 if said else 0.85 if abroad else 0.7)


def secrets(text: str) -> Iterator[Finding]:
    for mark, form, sure in SECRET:
        if mark in text:
            for found in form.finditer(text):
                yield Finding("key", *found.span(), sure)
    for said in SAID.finditer(text):
        if (given := GIVEN.match(text, said.end())) is not None:
            yield Finding("key", *given.span(1), 0.7)


# In the order in which they win where two findings overlap, and what must be in a text for the search to be worth it.
SEARCHES: dict[str, tuple[Callable[[str], Iterator[Finding]], str]] = {
    "key": (secrets, ""), "email": (emails, "@"), "iban": (ibans, "1"), "card": (cards, "1"),
    "ssn": (social_security, "-"), "ip": (addresses, ""), "phone": (phones, "1"),
}  # fmt: skip
KINDS: tuple[str, ...] = tuple(SEARCHES)
DIGIT = re.compile(r"\d[\d .()-]{6}")


def find_pii(text: str, *, kinds: Collection[str] = KINDS, least: float = 0.6) -> list[Finding]:
    """What is found in a text, by place; findings do not overlap. Never fails on any text.

    kinds: which of KINDS to look for. least: the confidence from which on a finding counts. Of a text longer than READ
    characters the head and tail are read. Takes about 10 us for a short text without digits.
    Raises: UnknownNameError for a kind there is not.
    """
    for kind in kinds:
        if kind not in SEARCHES:
            raise UnknownNameError("kind of personal data", kind, SEARCHES)
    shift = 0
    if len(text) > READ:
        head, shift = text[: READ // 2], len(text) - READ
        tail = find_pii(text[len(text) - READ // 2 :], kinds=kinds, least=least)
        moved = [f._replace(start=f.start + shift + READ // 2, end=f.end + shift + READ // 2) for f in tail]
        return find_pii(head, kinds=kinds, least=least) + moved
    numbers = DIGIT.search(text) is not None
    taken: list[Finding] = []
    covered = bytearray(len(text))
    for kind, (search, mark) in SEARCHES.items():
        if kind not in kinds or (mark == "1" and not numbers) or (mark not in ("", "1") and mark not in text):
            continue
        for found in search(text):
            if found.confidence >= least and not any(covered[found.start : found.end]):
                taken.append(found)
                covered[found.start : found.end] = bytes([1]) * (found.end - found.start)
    return sorted(taken, key=lambda found: found.start)


def mask_pii(text: str, findings: list[Finding] | None = None) -> str:
    """The text with each finding replaced by its kind in brackets, the same for equal values: [EMAIL_1].

    findings: of `find_pii`, on this text; None: found here.
    """
    numbers: dict[tuple[str, str], int] = {}
    used: Counter[str] = Counter()
    pieces, position = [], 0
    for found in find_pii(text) if findings is None else sorted(findings, key=lambda f: f.start):
        value = (found.kind, text[found.start : found.end])
        if value not in numbers:
            used[found.kind] += 1
            numbers[value] = used[found.kind]
        pieces += [text[position : found.start], f"[{found.kind.upper()}_{numbers[value]}]"]
        position = found.end
    return "".join([*pieces, text[position:]])
