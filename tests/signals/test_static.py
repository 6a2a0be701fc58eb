"""The static featuriser: its token block against an oracle, its behaviour on any text."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyroute.errors import ModelFileError
from polyroute.signals import surface
from polyroute.signals.conversation import routing_text, sample
from polyroute.signals.embed import package_file
from polyroute.signals.static import (
    CENTRE,
    MAX_CHARACTERS,
    SPREAD,
    SURFACE_NORM,
    TENSOR,
    TOKENIZER,
    WEIGHTS,
    Static,
    half_table,
    sum_rows,
)

TEXTS = [
    "Write a function that reverses a list in place.",
    "What is the capital of France?",
    "  two  spaces \n and\tlines\r\n",
    "Какая столица Франции?",
    "法国的首都是哪里？",
    "🎉 party 🎊🎊",
    "\\frac{1}{2} + x^2 = 3",
    "NUL \0 inside",
    "a" * 3_000,
]
TOKEN_BLOCK = np.sqrt(1 + SURFACE_NORM**2)  # the token block comes out divided by this


@pytest.fixture(scope="module")
def oracle():
    """Unit mean of the float16 rows by the plainest code there is."""
    numpy_file = pytest.importorskip("safetensors.numpy")
    tokenizers = pytest.importorskip("tokenizers")
    table = numpy_file.load_file(package_file("wordllama", WEIGHTS, "embed"))[TENSOR].astype(np.float64)
    tokenizer = tokenizers.Tokenizer.from_file(str(package_file("wordllama", TOKENIZER, "embed")))

    def mean(text):
        rows = table[tokenizer.encode(text, add_special_tokens=False).ids].mean(axis=0)
        return rows / np.linalg.norm(rows)

    return mean


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_token_block_is_the_unit_mean_of_token_rows(static, oracle, text):
    np.testing.assert_allclose(static([text])[0, :256] * TOKEN_BLOCK, oracle(text), atol=2e-6)


def test_token_block_is_what_wordllama_gives(static):
    """In a process of its own: the package sets up logging and imports much when imported."""
    code = (
        "import json, sys, importlib.util\n"
        "from wordllama import WordLlama\n"
        "folder = importlib.util.find_spec('wordllama').submodule_search_locations[0]\n"
        "model = WordLlama.load(cache_dir=folder, disable_download=True)\n"
        "print(json.dumps(model.embed(json.load(sys.stdin), norm=True).tolist()))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        input=json.dumps(TEXTS),
        capture_output=True,
        text=True,
        timeout=120,
    )
    if ran.returncode:
        pytest.skip(f"wordllama does not load here: {ran.stderr.strip().splitlines()[-1]}")
    theirs = np.array(json.loads(ran.stdout))
    np.testing.assert_allclose(static(TEXTS)[:, :256] * TOKEN_BLOCK, theirs, atol=2e-6)


def test_surface_block_is_the_centred_features_scaled_by_kind(static):
    rows = static(TEXTS)[:, 256:] * TOKEN_BLOCK
    features = np.stack([surface.surface(text) for text in TEXTS])
    for j, name in enumerate(surface.NAMES):
        double = 2 if name.startswith("share_") else 0.5 if name.startswith(("starts_", "ends_")) else 1
        expected = double * (features[:, j] - CENTRE.get(name, 0.0)) * SURFACE_NORM / SPREAD
        np.testing.assert_allclose(rows[:, j], expected, atol=1e-6)


def test_centre_names_features():
    assert set(CENTRE) <= set(surface.NAMES)


def test_batch_equals_single_to_the_bit(static):
    batch = static(TEXTS)
    assert batch.shape == (len(TEXTS), static.dim)
    assert batch.dtype == np.float32
    for text, row in zip(TEXTS, batch, strict=True):
        np.testing.assert_array_equal(static([text])[0], row)
    np.testing.assert_array_equal(static(TEXTS[::-1])[::-1], batch)


def test_another_instance_gives_the_same(static):
    np.testing.assert_array_equal(Static()(TEXTS), static(TEXTS))


def test_no_texts_give_no_rows(static):
    assert static([]).shape == (0, static.dim)


def test_vectors_are_about_unit_length(static):
    lengths = np.linalg.norm(static(TEXTS), axis=1)
    assert (lengths > 0.5).all()
    assert (lengths < 2.0).all()


@pytest.mark.parametrize("text", ["", " ", "\ud800", "a\udfffb", "\0", "\uffff", "👩‍👩‍👧‍👦", "<s>", "▁"], ids=ascii)
def test_odd_texts_have_finite_vectors(static, text):
    row = static([text])[0]
    assert np.isfinite(row).all()
    assert row.any()


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(codec=None), max_size=300))
def test_any_text_has_a_finite_vector(static, text):
    assert np.isfinite(static([text])).all()


def test_long_texts_are_sampled(static):
    text = " ".join(f"word{i}" for i in range(20_000))
    assert len(text) > 100_000
    np.testing.assert_array_equal(static([text]), static([sample(text, MAX_CHARACTERS)]))


def test_threads_agree(static):
    expected, wrong = static(TEXTS), []

    def work():
        for _ in range(20):
            if not np.array_equal(static(TEXTS), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_meaning_shows_in_the_cosine(static):
    code, same, chat = unit_rows(
        static(
            [
                "How do I sort a list of dictionaries by a key in Python?",
                "How can I order a Python array of dicts by one of their keys?",
                "What should I wear to a beach wedding in June?",
            ]
        )
    )
    assert code @ same > code @ chat + 0.1


def test_a_bare_follow_up_stays_with_its_topic(static):
    code_turns = [
        "My Python function that parses the CSV file raises a KeyError on missing columns, how do I fix it?",
        "You could use row.get(name) or check the header first. Shall I rewrite parse_rows with a default value?",
    ]
    chat_turns = [
        "I feel a bit lonely since I moved to a new city and don't know how to meet people.",
        "That is a hard feeling. Joining a club or a sport is a good start. Would you like some ideas?",
    ]
    code = "Why does my Python function raise a KeyError when a dictionary has no such key?"
    chat = "How do I make new friends in a city where I know nobody?"

    def follow_up(turns):
        roles = ("user", "assistant")
        messages = [{"role": r, "content": c} for r, c in zip(roles, turns, strict=True)]
        return routing_text([*messages, {"role": "user", "content": "yes, do it"}])

    in_code, in_chat, code, chat = unit_rows(static([follow_up(code_turns), follow_up(chat_turns), code, chat]))
    assert in_code @ code > in_code @ chat + 0.05
    assert in_chat @ chat > in_chat @ code + 0.05


def test_sums_of_half_precision_rows_are_exact_where_single_precision_is(tmp_path):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(300, 16)).astype(np.float16)
    table[0] = [0, -0.0, 6e-8, -6e-8, 65504, -65504, 6.1e-5, 1, *[0.5] * 8]  # zeros, subnormals, the largest
    one = sum_rows(table.view(np.int16), np.array([0]))
    np.testing.assert_array_equal(one, table[0].astype(np.float32))
    rows = rng.integers(1, 300, size=1000)
    np.testing.assert_allclose(
        sum_rows(table.view(np.int16), rows), table[rows].astype(np.float64).sum(axis=0), rtol=1e-4, atol=1e-3
    )
    assert not sum_rows(table.view(np.int16), np.array([], dtype=np.intp)).any()


def write_table(path, dtype="F16", name=TENSOR, shape=(3, 4)):
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 24]}}).encode()
    table = np.arange(12, dtype=np.float16).reshape(3, 4)
    path.write_bytes(len(header).to_bytes(8, "little") + header + table.tobytes())
    return table


def test_half_table_maps_the_tensor(tmp_path):
    table = write_table(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(half_table(tmp_path / "w.safetensors", TENSOR).view(np.float16), table)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: write_table(p, dtype="F32"),
        lambda p: write_table(p, name="other"),
        lambda p: write_table(p, shape=(3, 4, 5)),
        lambda p: write_table(p, shape=(300, 400)),
        lambda p: p.write_bytes(b"not a table at all"),
        lambda p: p.write_bytes(b""),
    ],
)
def test_a_broken_table_is_named(tmp_path, spoil):
    file = tmp_path / "w.safetensors"
    spoil(file)
    with pytest.raises(ModelFileError, match=r"w\.safetensors: expected"):
        half_table(file, TENSOR)


def test_loading_imports_neither_the_package_nor_what_it_needs():
    code = (
        "import sys\n"
        "from polyroute.signals import featuriser\n"
        "featuriser()(['x'])\n"
        "print(sorted({'wordllama', 'requests', 'pydantic', 'torch', 'onnxruntime'} & set(sys.modules)))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    if "MissingExtraError" in ran.stderr:
        pytest.skip("needs polyroute[embed]")
    assert ran.stdout.strip() == "[]", ran.stderr


def unit_rows(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_hundred_thousand_characters_do_not_take_longer_than_the_cap(static):
    """Work is bounded by the cap: counted in tokens looked up, not in seconds."""
    looked_up = []
    words = static.words
    static.words = lambda text: looked_up.append(len(text)) or words(text)
    try:
        static(["many words in a row " * 5_000])
    finally:
        static.words = words
    assert MAX_CHARACTERS - 50 < looked_up[0] <= MAX_CHARACTERS
