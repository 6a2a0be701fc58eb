"""The language a text is written in, from its script and, where several share one, from small words and trigrams.

Small and offline: the profiles below are all there is. Good for sentences; a few words, code or formulas are often
`und` (not determined), and close relatives (Danish and Norwegian, Indonesian and Malay) are told apart poorly.
Cyrillic text that is not Ukrainian counts as Russian.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import numpy as np

from polyroute.types import Array

READ = 400  # characters looked at: half from the head, half from the tail
WORD = re.compile(r"[^\W\d_]+")
UNDETERMINED = "und"
BONUS, LETTER = 4.0, 1.5  # of a listed word; of a letter of LETTERS
SMOOTH, TRIGRAMS = 0.1, 5000  # count of a trigram not seen; how many there may be
LEAST_LETTERS = 6  # of an alphabet that several languages share

# First and last code point -> script. Only those that decide something.
SCRIPTS: tuple[tuple[int, int, str], ...] = (
    (0x41, 0x24F, "Latin"), (0x370, 0x3FF, "Greek"), (0x400, 0x52F, "Cyrillic"), (0x531, 0x58F, "Armenian"),
    (0x591, 0x5F4, "Hebrew"), (0x600, 0x77F, "Arabic"), (0x900, 0x97F, "Devanagari"), (0x980, 0x9FF, "Bengali"),
    (0xA00, 0xA7F, "Gurmukhi"), (0xA80, 0xAFF, "Gujarati"), (0xB80, 0xBFF, "Tamil"), (0xC00, 0xC7F, "Telugu"),
    (0xC80, 0xCFF, "Kannada"), (0xD00, 0xD7F, "Malayalam"), (0xE00, 0xE7F, "Thai"), (0x10A0, 0x10FF, "Georgian"),
    (0x1E00, 0x1EFF, "Latin"), (0x3040, 0x30FF, "Kana"), (0x3400, 0x4DBF, "Han"), (0x4E00, 0x9FFF, "Han"),
    (0xAC00, 0xD7AF, "Hangul"),
)  # fmt: skip
ALONE = {  # script -> the language that is meant where nothing else is known
    "Greek": "el", "Armenian": "hy", "Hebrew": "he", "Devanagari": "hi", "Bengali": "bn", "Gurmukhi": "pa",
    "Gujarati": "gu", "Tamil": "ta", "Telugu": "te", "Kannada": "kn", "Malayalam": "ml", "Thai": "th",
    "Georgian": "ka", "Han": "zh", "Kana": "ja", "Hangul": "ko",
}  # fmt: skip
# Frequent words, the most frequent first: the profile of a language that shares its script.
WORDS: dict[str, dict[str, str]] = {
    "Latin": {
        "en": "the of and to a in is that for it was on are as with be this have from or had by not but what all "
        "were when we there can an your which their if will how each about up out them then many some would "
        "like into has write find following question answer given number does did who where why more you i "
        "my do please",
        "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden "
        "aus er hat dass sie nach wird bei einer um am sind noch wie einem über so zum war haben nur oder "
        "aber vor zur bis mehr durch man sein wurde wenn ich was kann mir bitte warum welche wo",
        "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec "
        "son aux ou mais comme nous cette ses être sa fait été aussi leur bien peut tout ces elle je vous "
        "quel quelle pourquoi comment où deux même entre sans très avoir mon moi",
        "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me "
        "si sin sobre este ya entre cuando todo esta ser son dos también fue había era muy años hasta desde "
        "está mi porque qué cómo cuál dónde puedo hacer tiene favor",
        "it": "di e il la che in a per un è del non una i le si con da della sono come più lo al ha anche ma dei "
        "nel alla se gli delle o questo su ci mi suo essere quando stato molto dalla perché cosa qual quale "
        "dove tutti tra fra nella degli fare puoi mio questa",
        "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das "
        "tem à seu sua ou ser quando muito há nos já está eu também só pelo pela até isso ela entre era "
        "depois sem mesmo aos ter você qual onde são fazer meu",
        "nl": "de van een het en in is dat op te zijn met voor niet die aan er om ook als bij maar uit dan nog "
        "naar heeft hij wordt door worden of werd over tot was ze deze had kan meer dit hebben wat waar hoe "
        "waarom welke ik je mijn geen zo zou kunnen wil",
        "sv": "och i att det som en på är av för med den till inte har de ett om han men var jag sig från så vi "
        "kan man när år hade också efter eller nu vid kommer hur vad varför vilken mycket skulle finns där "
        "mig ska alla över",
        "da": "og i at det er en til af på for med de som der den ikke et har var jeg fra sig men om så kan blev "
        "han også eller vil hun være efter når ved hvad hvordan hvorfor hvor nogle blive meget mig skal",
        "nb": "og i det er på som en til å av for at med ikke de har den et om jeg fra men så seg var kan hun vil "
        "han eller også etter ble når være ved mot hva hvordan hvorfor hvor noen bli mye meg skal",
        "fi": "ja on ei se että oli hän mutta joka ovat kuin kun myös sen tai ole mukaan jo vain niin minä sitä "
        "mitä miten miksi missä olen voi voin tämä tämän hyvin kaikki ennen sekä jos nyt vielä kanssa jotka",
        "pl": "i w na z się nie do to że jest o jak po co od za ale są przez dla ma tym jego tak czy może by być "
        "lub już które który był tylko jako ich gdy jeszcze mnie dlaczego gdzie jaki jaka mogę proszę "
        "bardzo",
        "cs": "a se v na je že o s z do to i za pro by ale si jako jsem po které k jeho který od jsou tak už jak "
        "při co nebo bylo byl jen až ve podle také proč kde jaký mohu prosím být jste více mezi není",
        "ro": "de și în la a cu nu că o pe din care se pentru mai un este sau ce sunt fi fost prin au după dar am "
        "lui era către când toate cum unde cât poate acest această fără între ale ei foarte îmi",
        "hu": "a az és hogy nem is ez egy volt meg de csak van azt már mint ha el vagy még ki minden így lesz aki "
        "ezt miért hogyan hol mi mit kell lehet nagyon után között több nekem kérem melyik",
        "tr": "ve bir bu da de için ile çok daha olarak en gibi ne var olan sonra kadar o mi ama ya değil her "
        "olduğu kendi ben sen biz nasıl neden nerede hangi bana lütfen mı şey iki yok ise tarafından",
        "id": "yang dan di dengan untuk dari ini pada itu dalam tidak adalah akan ke dapat atau juga saya oleh "
        "ada bisa apa bagaimana mengapa telah lebih sebagai sudah karena seperti mereka kita anda tersebut "
        "satu bahwa mana",
        "vi": "và của là có không được cho một người các trong với này những đã để khi từ đến nhà tôi ra như về "
        "làm thì bạn tại nhiều hơn sao thế nào gì đâu hãy việc năm rất cũng sẽ phải lại",
    },
    "Cyrillic": {
        "ru": "между чтобы который которые эти этого этими нет время после перед через нужно "
        "и в не на я что с он как это по но они к у ты из за то все она так его да мы от был для о же а вы "
        "бы ее мне быть если или есть только уже еще почему какой где когда может можно очень этот чем без "
        "пожалуйста",
        "uk": "і в на не що я з у та до як це він за по але про так вони від його є ми для бути був коли або ще "
        "тільки вже чому який де може можна дуже цей вона якщо без під чи їх будь ласка потрібно",
    },
    "Arabic": {
        "ar": "في من على أن إلى التي عن مع هذا كان ما لا هذه الذي هو هي أو بين كل بعد قد لم كيف لماذا أين هل ثم "
        "كما عند يمكن ذلك أنا حتى إذا",
        "fa": "و در به از که این است را با برای آن یک های خود تا کرد بر هم نیز شود شده چه چرا کجا چگونه می من ما "
        "اما یا اگر باید بود هست کنید",
    },
}  # fmt: skip

# Letters that few of the languages of their script have: each occurrence speaks for these.
LETTERS: dict[str, str] = {
    "de": "ßäöü", "fr": "èêàçœùâîô", "es": "ñ¿¡óíáú", "it": "àèìòù", "pt": "ãõçáéê", "sv": "åäö", "da": "æøå",
    "nb": "æøå", "fi": "äö", "pl": "łąęśćżźńó", "cs": "řůěčšžýí", "ro": "țșăâî", "hu": "őűáéöü", "tr": "ğışçöü",
    "vi": "ạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹơưđ", "ru": "ыэё", "uk": "іїєґ", "fa": "پچژگی",
}  # fmt: skip


class Language(NamedTuple):
    """What a text is written in. confidence: 0..1, a judgement; script: of most letters, "" without letters."""

    code: str  # ISO 639-1, or `und`
    confidence: float
    script: str


def script_of(text: str) -> tuple[str, float]:
    """(script of most letters, their share). An ideograph or syllable counts as three letters of an alphabet."""
    counts: dict[str, int] = {}
    plain = sum(map(str.isalpha, text)) if text.isascii() else None
    if plain is not None:
        return ("Latin", 1.0) if plain else ("", 0.0)
    for c in text:
        if c.isalpha() or "\u0900" <= c <= "\u0e7f":
            script = script_at(c)
            counts[script] = counts.get(script, 0) + (3 if script in ("Han", "Kana", "Hangul") else 1)
    if "Kana" in counts and counts["Kana"] * 8 > counts.get("Han", 0):
        counts["Kana"] += counts.pop("Han", 0)  # Japanese writes with both
    if not counts:
        return "", 0.0
    best = max(counts, key=lambda name: counts[name])
    return best, counts[best] / sum(counts.values())


@functools.cache
def script_at(character: str) -> str:
    code = ord(character)
    return next((name for first, last, name in SCRIPTS if first <= code <= last), "other")


class Profiles(NamedTuple):
    """Trigrams and words of the languages of one script, rows of one table."""

    codes: tuple[str, ...]
    rows: dict[str, int]  # trigram, word after two spaces, or letter -> row
    table: Array  # [r, l] log-probability of a trigram, or bonus of a word or letter; row 0: a trigram not listed


@functools.cache
def profiles(script: str) -> Profiles:
    """Worked out from WORDS at first use. A word's weight falls with its rank."""
    codes = tuple(WORDS[script])
    counts: dict[str, Array] = {"": np.zeros(len(codes))}
    bonus: dict[str, Array] = {}
    for j, code in enumerate(codes):
        for rank, word in enumerate(WORDS[script][code].split()):
            bonus.setdefault(f"  {word}", np.zeros(len(codes)))[j] = BONUS
            for trigram in trigrams_of(word):
                counts.setdefault(trigram, np.zeros(len(codes)))[j] += 1 / (1 + rank / 20)
        for letter in LETTERS.get(code, ""):
            bonus.setdefault(letter, np.zeros(len(codes)))[j] = LETTER
    seen = np.stack(list(counts.values()))
    logs = np.log((seen + SMOOTH) / (seen.sum(axis=0) + SMOOTH * TRIGRAMS)) / 2
    rows = {name: i for i, name in enumerate([*counts, *bonus])}
    return Profiles(codes, rows, np.concatenate([logs, np.stack(list(bonus.values()))]))


def trigrams_of(word: str) -> list[str]:
    padded = f" {word} "
    return [padded[i : i + 3] for i in range(len(padded) - 2)]


def language_of(text: str) -> Language:
    """The language of a text. Never fails; `und` where there are too few letters to tell. About 0.1 ms a question."""
    if len(text) > READ:
        text = text[: READ // 2] + " " + text[-READ // 2 :]
    script, share = script_of(text)
    if script in ALONE:
        return Language(ALONE[script], share, script)
    if script not in WORDS:
        return Language(UNDETERMINED, 0.0, script if script != "other" else "")
    words = WORD.findall(text.lower())
    if sum(map(len, words)) < LEAST_LETTERS:
        return Language(UNDETERMINED, 0.0, script)
    known = profiles(script)
    grams = [known.rows.get(trigram, 0) for word in words for trigram in trigrams_of(word)]
    small = [row for word in words if (row := known.rows.get(f"  {word}")) is not None]
    if not text.isascii():
        small += [row for c in text.lower() if c > "\x7f" and (row := known.rows.get(c)) is not None]
    score = known.table[grams + small].sum(axis=0)
    score -= score.max()
    chance = np.exp(score / 2)  # halved: the letters of a text are not independent
    best, certain = int(chance.argmax()), float(chance.max() / chance.sum())
    if certain < 0.5:
        return Language(UNDETERMINED, certain, script)
    return Language(known.codes[best], certain * share, script)
