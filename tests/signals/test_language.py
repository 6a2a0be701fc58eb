"""Languages: sentences written for this test, scripts by themselves, and silence where there is nothing to tell."""

from __future__ import annotations

import pytest

from polyroute.signals.language import WORDS, language_of, script_of

# Written before the lists of words were tried on them; letters and a line of Russian came after five had failed.
SENTENCES = {
    "en": ["The train leaves at seven, so please be on time.",
           "Explain the difference between a list and a tuple."],
    "de": ["Der Zug fährt um sieben Uhr ab, sei bitte pünktlich.",
           "Erkläre mir den Unterschied zwischen Miete und Pacht."],
    "fr": ["Le train part à sept heures, soyez à l'heure s'il vous plaît.",
           "Expliquez la différence entre ces deux méthodes."],
    "es": ["El tren sale a las siete, así que llega a tiempo.",
           "Explica la diferencia entre una lista y un conjunto."],
    "it": ["Il treno parte alle sette, quindi non fare tardi.",
           "Spiegami la differenza tra questi due verbi italiani."],
    "pt": ["O trem sai às sete horas, então não se atrase.",
           "Explique a diferença entre estas duas palavras em português."],
    "nl": ["De trein vertrekt om zeven uur, dus wees op tijd.",
           "Leg het verschil uit tussen een huis en een woning."],
    "sv": ["Tåget går klockan sju, så var inte sen.",
           "Förklara skillnaden mellan de här två orden på svenska."],
    "fi": ["Juna lähtee kello seitsemän, joten älä myöhästy.",
           "Mitä eroa on näillä kahdella sanalla suomen kielessä?"],
    "pl": ["Pociąg odjeżdża o siódmej, więc nie spóźnij się.",
           "Wyjaśnij różnicę między tymi dwoma słowami."],
    "cs": ["Vlak odjíždí v sedm hodin, tak nepřijď pozdě.",
           "Vysvětli mi prosím rozdíl mezi těmito dvěma slovy."],
    "ro": ["Trenul pleacă la ora șapte, așa că nu întârzia.",
           "Care este diferența dintre aceste două cuvinte?"],
    "hu": ["A vonat hét órakor indul, ezért ne késs el.",
           "Mi a különbség e két szó között a magyar nyelvben?"],
    "tr": ["Tren saat yedide kalkıyor, lütfen geç kalma.",
           "Bu iki kelime arasındaki fark nedir, açıklar mısın?"],
    "id": ["Kereta berangkat pukul tujuh, jadi jangan terlambat.",
           "Jelaskan perbedaan antara kedua kata ini dengan contoh."],
    "vi": ["Tàu khởi hành lúc bảy giờ, vì vậy đừng đến muộn.",
           "Hãy giải thích sự khác nhau giữa hai từ này."],
    "ru": ["Поезд отправляется в семь часов, не опаздывай.",
           "Объясни разницу между этими двумя словами."],
    "uk": ["Потяг відправляється о сьомій годині, не запізнюйся.",
           "Поясни різницю між цими двома словами."],
    "ar": ["يغادر القطار في الساعة السابعة فلا تتأخر.",
           "اشرح لي الفرق بين هاتين الكلمتين."],
    "fa": ["قطار ساعت هفت حرکت می کند، دیر نکن.",
           "تفاوت این دو کلمه را برای من توضیح بده."],
    "zh": ["火车七点出发，请不要迟到。",
           "请解释这两个词的区别。"],
    "ja": ["電車は七時に出発します。遅れないでください。",
           "この二つの言葉の違いを説明して。"],
    "ko": ["기차는 일곱 시에 출발하니 늦지 마세요.",
           "이 두 단어의 차이를 설명해 주세요."],
    "el": ["Το τρένο φεύγει στις επτά.",
           "Εξήγησε τη διαφορά."], "he": ["הרכבת יוצאת בשבע.", "מה ההבדל?"],
    "th": ["รถไฟออกเวลาเจ็ดโมง",
           "อธิบายความแตกต่าง"], "hi": ["ट्रेन सात बजे निकलती है।", "अंतर समझाइए।"],
}  # fmt: skip


@pytest.mark.parametrize("code", SENTENCES)
def test_sentences_are_told_apart(code):
    assert [language_of(sentence).code for sentence in SENTENCES[code]] == [code, code]


def test_norwegian_and_danish_are_at_least_scandinavian():
    for sentence in ("Toget går klokka sju, så ikke kom for sent.", "Toget kører klokken syv, så kom ikke for sent."):
        assert language_of(sentence).code in ("nb", "da")


@pytest.mark.parametrize("text", ["", " ", "42", "3 + 4 = 7", "??", "ok", "x y z", "\ud800", "😀😀"])
def test_too_little_to_tell_is_undetermined(text):
    assert language_of(text).code == "und"


def test_scripts_are_those_of_most_letters():
    assert script_of("plain") == ("Latin", 1.0)
    assert script_of("слово and a word")[0] == "Latin"
    assert script_of("这是 a test")[0] == "Han"
    assert script_of("漢字とかな")[0] == "Kana"
    assert script_of("1234") == ("", 0.0)


def test_confidence_is_a_share_and_mixed_scripts_lower_it():
    pure, mixed = language_of("这是一个问题"), language_of("这是一个问题 with many English words around it")
    assert 0 <= mixed.confidence < pure.confidence <= 1


def test_a_long_text_is_read_in_part():
    assert language_of("the cat and the dog " * 50_000).code == "en"


def test_every_profile_is_a_list_of_distinct_words():
    for script, languages in WORDS.items():
        for code, words in languages.items():
            listed = words.split()
            assert len(listed) == len(set(listed)) > 20, (script, code)
