from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from polyroute.errors import ConfigError
from polyroute.gateway.config import Config, ConfigErrors, ModelConfig, PolicyConfig, ServerConfig, load_config, schema
from polyroute.gateway.example import example, reference
from polyroute.gateway.strict import Secret
from polyroute.signals.needs import CAPABILITIES
from polyroute.types import Profile

REPOSITORY = Path(__file__).resolve().parents[2]
HOSTED = '[[models]]\nid = "large"\nurl = "https://api.openai.com/v1"\n'


@pytest.fixture
def write(tmp_path: Path):
    """Write a configuration, and give its path."""

    def written(text: str) -> Path:
        path = tmp_path / "polyroute.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def refusals(path: Path, **environment: str) -> dict[str, ConfigError]:
    """path in the file -> the problem there."""
    with pytest.raises(ConfigErrors) as caught:
        load_config(path, environment=environment)
    assert str(path) in str(caught.value)
    return {error.path: error for error in caught.value.errors}


def nothing(name: str) -> None:
    """A catalogue that knows no model."""


# ---- what goes without a file


def test_without_a_file_two_local_models_serve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config()
    assert [(model.id, model.backend) for model in config.models] == [
        ("qwen2.5-coder-0.5b", "local"), ("qwen2.5-coder-1.5b", "local"),
    ]  # fmt: skip
    assert {name: policy.trade_off for name, policy in config.policies.items()} == {
        "auto": 0.3, "auto:cheap": 3.0, "auto:best": 0.0,
    }  # fmt: skip
    assert (config.server.host, config.server.port, config.server.max_body_mb) == ("127.0.0.1", 8080, 20.0)
    assert config.server.client_keys == ()
    assert config.journal.path == tmp_path / ".polyroute" / "journal.sqlite"
    assert (config.journal.store, config.journal.capacity, config.journal.flush_s) == ("features", 20_000, 0.05)
    assert dataclasses.astuple(config.timeouts) == (5.0, 120.0, 60.0, 600.0)
    assert (config.local.threads, config.local.context, config.local.slots) == (1, 4096, 4)
    assert config.router.artefact == "default"
    assert config.warnings == ()


def test_an_empty_file_is_the_defaults(write, monkeypatch):
    path = write("")
    monkeypatch.chdir(path.parent)
    assert dataclasses.replace(load_config(path), source=None) == load_config()


def test_everything_can_be_said(write, tmp_path):
    for name in ("router.npz", "model.gguf", "answers.parquet"):
        (tmp_path / name).touch()
    config = load_config(
        write("""
[server]
host = "0.0.0.0"
port = 9000
max_body_mb = 5
client_keys = ["env:CLIENT_A", "env:CLIENT_B"]
answer_model = "requested"
[router]
artefact = "router.npz"
[journal]
path = "logs/j.sqlite"
store = "prompts"
capacity = 10
flush_s = 0.2
[timeouts]
connect_s = 1
total_s = inf
[local]
threads = 2
context = 8192
slots = 1
cache = "~/models"
[[models]]
id = "openrouter/large"
url = "https://openrouter.ai/api/v1"
api_key = "env:KEY"
upstream_model = "large-2026"
price_in = 2
price_out = 8.5
context = 128000
offers = ["tools", "vision"]
region = "eu"
ability = { code = 1.5 }
tokens_per_s = 60
[[models]]
id = "small"
backend = "local"
file = "model.gguf"
[[models]]
id = "recorded"
backend = "replay"
table = "answers.parquet"
[policies.auto]
trade_off = 1
[policies.quick]
weights = { quality = 1, latency = -0.1 }
explore = "epsilon"
epsilon = 0.1
budget_usd_per_request = 0.01
deadline_s = 2
models = ["small", "openrouter/large"]
needs = ["tools"]
"""),
        environment={"CLIENT_A": "aaa", "CLIENT_B": "bbb", "KEY": "kkk"},
    )
    assert [key.reveal() for key in config.server.client_keys] == ["aaa", "bbb"]
    assert config.router.artefact == str(tmp_path / "router.npz")
    assert config.journal.path == tmp_path / "logs" / "j.sqlite"
    assert config.timeouts.connect_s == 1.0
    assert config.timeouts.total_s == math.inf
    assert config.local.cache == Path.home() / "models"
    large, small, recorded = config.models
    assert large.api_key is not None
    assert large.api_key.reveal() == "kkk"
    assert (large.served_name, large.price_in, large.offers) == ("large-2026", 2.0, frozenset({"tools", "vision"}))
    assert small.file == str(tmp_path / "model.gguf")
    assert recorded.table == tmp_path / "answers.parquet"
    assert config.policies["auto"].trade_off == 1.0
    assert config.policies["auto:cheap"].trade_off == 3.0
    quick = config.policies["quick"]
    assert (quick.weights, quick.trade_off) == ({"quality": 1.0, "latency": -0.1}, None)
    assert (quick.explore, quick.epsilon, quick.models) == ("epsilon", 0.1, ("small", "openrouter/large"))


def test_relative_paths_start_from_the_files_folder(write, tmp_path, monkeypatch):
    path = write('[journal]\npath = "here.sqlite"')
    monkeypatch.chdir("/")
    assert load_config(path).journal.path == tmp_path / "here.sqlite"


def test_a_virtual_model_redefined_in_part_keeps_its_trade_off(write):
    config = load_config(write(HOSTED + '[policies."auto:cheap"]\nexplore = "ucb"\n[policies.mine]\nexplore = "ucb"\n'))
    assert config.policies["auto:cheap"].trade_off == 3.0
    assert config.policies["mine"].trade_off == 0.3


def test_a_configuration_does_not_change(write):
    config = load_config(write(HOSTED))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.server.port = 1


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("[sever]", "sever", "Did you mean 'server'?"),
        ("port = 1", "port", "Did you mean 'port' in [server]?"),
        ("[journal]\nthreads = 1", "journal.threads", "Did you mean 'threads' in [local]?"),
        ("[server]\nhosst = 'x'", "server.hosst", "Did you mean 'host'?"),
        ("[server]\nhosst = 'x'", "server.hosst", "expected a known key (host, port,"),
        ("[timeouts]\nconect_s = 1", "timeouts.conect_s", "Did you mean 'connect_s'?"),
        (HOSTED + "priceout = 3", "models[0].priceout", "Did you mean 'price_out'?"),
        (HOSTED + "[policies.auto]\ntradeoff = 1", "policies.auto.tradeoff", "Did you mean 'trade_off'?"),
        (HOSTED + "[policies.'a.b']\nx = 1", 'policies."a.b".x', "got 'x'"),
        (HOSTED + "[policies.auto]\nweights = {qualty = 1}", "policies.auto.weights.qualty", "Did you mean 'quality'?"),
        ("[server]\nport = '8080'", "server.port", "a whole number, got '8080'. Write it without quotes."),
        ("[server]\nport = true", "server.port", "expected a whole number, got True."),
        ("[server]\nport = 80.5", "server.port", "expected a whole number, got 80.5."),
        ("[server]\nport = 65536", "server.port", "expected a finite number, 0 or more, at most 65535, got 65536."),
        ("[server]\nport = -1", "server.port", "got -1"),
        ("[server]\nhost = 1", "server.host", "expected text, got 1. Put it in quotes."),
        ("[server]\nhost = ''", "server.host", "got ''"),
        ("[server]\nmax_body_mb = 0", "server.max_body_mb", "above 0, at most 1024, got 0"),
        ("[server]\nmax_body_mb = nan", "server.max_body_mb", "expected a finite number of MiB"),
        ("[server]\nmax_body_mb = inf", "server.max_body_mb", "got inf"),
        ("[server]\nanswer_model = 'concret'", "server.answer_model", "Did you mean 'concrete'?"),
        ("[server]\nclient_keys = 'env:A'", "server.client_keys", "expected a list, got a literal value (not shown)."),
        ("server = 1", "server", "expected a table, got 1. Write [server] and its keys below."),
        ("[journal]\nstore = 'all'", "journal.store", "one of features, prompts, nothing"),
        ("[journal]\ncapacity = 0", "journal.capacity", "1 or more"),
        ("[journal]\npath = ''", "journal.path", "expected a path"),
        ("[journal]\npath = '.'", "journal.path", "a file, not a folder"),
        ("[journal]\npath = 'polyroute.toml'", "journal.path", "another file than this one"),
        ("[journal]\nflush_s = 0", "journal.flush_s", "above 0"),
        ("[timeouts]\nidle_s = 0", "timeouts.idle_s", "expected a finite number of seconds, above 0, got 0."),
        ("[timeouts]\nidle_s = nan", "timeouts.idle_s", "got nan"),
        ("[local]\nthreads = 0", "local.threads", "1 or more"),
        ("[local]\ncontext = 10", "local.context", "256 or more"),
        ("[router]\nartefact = 'no.npz'", "router.artefact", "expected a file that exists"),
        ("[[models]]\nurl = 'http://x'", "models[0].id", "expected this key, which has no default, got nothing."),
        ("[models]\nid = 'x'", "models", "expected a list"),
        ("[[models]]\nid = 'two words'\nurl = 'http://x'", "models[0].id", "got 'two words'"),
        ("[[models]]\nid = 'named'\nurl = 'http://x'", "models[0].id", "another name than named, none, other"),
        (HOSTED + HOSTED, "models[0].id", "expected an id that no other model has, got 'large'."),
        ("[[models]]\nid = 'a'", "models[0].url", "expected a base URL such as https://api.openai.com/v1, got None."),
        ("[[models]]\nid = 'a'\nbackend = 'opnai'", "models[0].backend", "Did you mean 'openai'?"),
        ("[[models]]\nid = 'a'\nurl = 'api.x.com'", "models[0].url", "Write it as https://api.x.com"),
        ("[[models]]\nid = 'a'\nurl = 'ftp://x'", "models[0].url", "begins with http:// or https://"),
        ("[[models]]\nid = 'a'\nurl = 'http://'", "models[0].url", "expected a base URL"),
        ("[[models]]\nid = 'a'\nurl = 'http://x:99999'", "models[0].url", "expected a base URL"),
        ("[[models]]\nid = 'a'\nurl = 'http://x/?k=1'", "models[0].url", "expected a base URL"),
        ("[[models]]\nid = 'a'\nbackend = 'local'\nfile = './a.gguf'", "models[0].file", "expected a file that exists"),
        ("[[models]]\nid = 'a'\nbackend = 'local'\nurl = 'http://x'", "models[0].url", "nothing with backend 'local'"),
        ("[[models]]\nid = 'a'\nbackend = 'replay'", "models[0].table", "a Parquet file that exists, got None"),
        ("[[models]]\nid = 'a'\nbackend = 'replay'\ntable = 'x'", "models[0].table", "a Parquet file that exists"),
        (HOSTED + "price_in = -1", "models[0].price_in", "0 or more, got -1"),
        (HOSTED + "context = 0", "models[0].context", "1 or more"),
        (HOSTED + "ability = {code = 'high'}", "models[0].ability.code", "expected a number, got 'high'"),
        (HOSTED + "ability = {code = nan}", "models[0].ability.code", "expected a finite number"),
        (HOSTED + "offers = 'tools'", "models[0].offers", "expected a list, got 'tools'. Write [...] around it."),
        (HOSTED + "offers = [1]", "models[0].offers[0]", "expected text, got 1"),
        (HOSTED + "[policies.large]", "policies.large", "a name that is not a model's id, got 'large'."),
        ("[[models]]\nid = 'auto'\nurl = 'http://x'", "policies.auto", "a name that is not a model's id"),
        (HOSTED + "[policies.named]", "policies.named", "none of named, none, other"),
        (HOSTED + "[policies.'two words']", 'policies."two words"', "a name without spaces"),
        (HOSTED + "[policies.p]\nmodels = ['larg']", "policies.p.models[0]", "Did you mean 'large'?"),
        (HOSTED + "[policies.p]\nmodels = []", "policies.p.models", "Leave it out for all models."),
        (HOSTED + "[policies.p]\ntrade_off = -1", "policies.p.trade_off", "0 or more"),
        (HOSTED + "[policies.p]\ntrade_off = nan", "policies.p.trade_off", "got nan"),
        (HOSTED + "[policies.p]\ntrade_off = 1\nweights = {quality = 1}", "policies.p.weights", "Remove one of them."),
        (HOSTED + "[policies.p]\nweights = {cost = inf}", "policies.p.weights.cost", "finite number, got inf"),
        (HOSTED + "[policies.p]\nexplore = 'thomson'", "policies.p.explore", "Did you mean 'thompson'?"),
        (HOSTED + "[policies.p]\nepsilon = 0", "policies.p.epsilon", "above 0, at most 1"),
        (HOSTED + "[policies.p]\nepsilon = 1.5", "policies.p.epsilon", "at most 1"),
        (HOSTED + "[policies.p]\nbudget_usd_per_request = 0", "policies.p.budget_usd_per_request", "above 0"),
        (HOSTED + "[policies.p]\ndeadline_s = -2", "policies.p.deadline_s", "above 0"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(write, text, path, message):
    found = refusals(write(text))
    assert path in found
    assert message in str(found[path])


def test_all_problems_are_told_at_once(write):
    path = write("[server]\nport = 'x'\nhosst = 1\n[journal]\nstore = 'x'\n[[models]]\nbackend = 'x'\n")
    assert list(refusals(path)) == ["server.port", "server.hosst", "journal.store", "models[0].backend", "models[0].id"]
    with pytest.raises(ConfigError, match=r"polyroute.toml: 5 problems\n  server.port: expected") as caught:
        load_config(path)
    assert caught.value.path == "server.port"


def test_a_single_problem_takes_one_line(write):
    with pytest.raises(ConfigError, match=r"polyroute.toml: server.port: expected a whole number, got 'x'") as caught:
        load_config(write("[server]\nport = 'x'"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[server", b"\xff\xfe", b"a = 1\na = 2"])
def test_what_is_not_toml_names_the_file(tmp_path, content):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad.toml: expected a readable TOML file, got"):
        load_config(path)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file.*polyroute check --write-example .*none.toml"):
        load_config(tmp_path / "none.toml")


def test_sections_built_in_python_are_checked_too():
    with pytest.raises(ConfigError, match=r"port: expected a finite number, 0 or more, at most 65535, got 99999"):
        ServerConfig(port=99999)
    with pytest.raises(ConfigError, match="trade_off: expected a finite number, 0 or more, got nan"):
        PolicyConfig(trade_off=math.nan)
    with pytest.raises(ConfigError, match="id: expected text"):
        ModelConfig(id="")


# ---- secrets


@pytest.mark.parametrize("literal", ['"sk-live-1234"', '"env:"', '"env:1X"', '"$KEY"', '"env:sk-live-1234 "', "1234"])
def test_a_literal_secret_is_refused_and_not_repeated(write, literal):
    path = write(HOSTED + f"api_key = {literal}\n[server]\nclient_keys = [{literal}]\n")
    found = refusals(path)
    assert set(found) == {"models[0].api_key", "server.client_keys[0]"}
    for error in found.values():
        assert "expected a reference env:NAME, got a literal value (not shown). Put the secret" in str(error)
        for said in (repr(error), str(error.got), str(error.__dict__)):
            assert "1234" not in said
            assert "$KEY" not in said
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "1234" not in str(caught.value) + repr(caught.value)


def test_a_password_in_a_url_is_refused_and_not_repeated(write):
    error = refusals(write('[[models]]\nid = "a"\nurl = "https://me:hunter2@x.com"\n'))["models[0].url"]
    assert "without a user name or password" in str(error)
    assert "hunter2" not in str(error) + repr(error.got)


def test_a_missing_variable_is_named_at_load(write):
    path = write(HOSTED + 'api_key = "env:MY_KEY"')
    assert "expected the environment variable MY_KEY, got none of that name. export MY_KEY=..." in str(
        refusals(path)["models[0].api_key"]
    )
    assert "got an empty one" in str(refusals(path, MY_KEY=" ")["models[0].api_key"])
    unusable = refusals(path, MY_KEY="two\nlines")["models[0].api_key"]
    assert "printable ASCII without spaces" in str(unusable)
    assert "lines" not in str(unusable)


def test_secrets_can_be_left_unread(write):
    config = load_config(write(HOSTED + 'api_key = "env:MY_KEY"'), read_environment=False)
    key = config.models[0].api_key
    assert key is not None
    with pytest.raises(ConfigError, match="env:MY_KEY: expected its value"):
        key.reveal()


def test_a_secret_never_shows(write):
    config = load_config(write(HOSTED + 'api_key = "env:MY_KEY"'), environment={"MY_KEY": "sk-live-1234\n"})
    key = config.models[0].api_key
    assert key is not None
    assert key.reveal() == "sk-live-1234"
    assert f"{key}" == repr(key) == "Secret(env:MY_KEY)"
    assert "1234" not in repr(config)
    assert "1234" not in str(dataclasses.asdict(config.models[0]))
    assert key == Secret("MY_KEY", "sk-live-1234")
    assert key != Secret("MY_KEY", "other")
    assert not hasattr(key, "__dict__")
    with pytest.raises(TypeError):
        json.dumps(key)


# ---- the pool


def test_the_catalogue_fills_what_is_not_said(write):
    known = {
        "gpt-4o": Profile(price_in=2.5, price_out=10.0, context=128_000, offers=frozenset({"tools"}), tokens_per_s=50),
        "qwen2.5-coder-0.5b": Profile(price_in=0.1, price_out=0.3, context=32_768, region="local"),
    }
    config = load_config(
        write(
            '[[models]]\nid = "big"\nurl = "https://x/v1"\nupstream_model = "gpt-4o"\nprice_out = 0\n'
            '[[models]]\nid = "mine"\nbackend = "local"\nfile = "qwen2.5-coder-0.5b"\noffers = ["json"]\n'
            '[[models]]\nid = "unknown"\nurl = "http://127.0.0.1:1/v1"\nability = { code = 2 }\n'
        )
    )
    big, mine, unknown = config.candidates(known.get)
    assert big.id == "big"
    assert (big.profile.price_in, big.profile.price_out) == (2.5, 0.0), "the file wins, also with 0"
    assert (big.profile.context, big.profile.offers) == (128_000, {"tools"})
    assert big.profile.tokens_per_s == 50
    assert mine.profile.context == 4096, "no more than [local] context"
    assert (mine.profile.offers, mine.profile.region) == ({"json"}, "local")
    assert (unknown.profile.price_in, unknown.profile.context, unknown.profile.offers) == (0.0, None, frozenset())
    assert unknown.profile.ability == {"code": 2.0}
    said = "\n".join(config.warnings_for(config.candidates(known.get), known.get))
    assert "unknown: price_in and price_out are not known and count as 0" in said
    assert "unknown: offers is not known" in said
    assert "big:" not in said


def test_a_local_model_that_nobody_knows_is_refused(write):
    config = load_config(write('[[models]]\nid = "qwen"\nbackend = "local"\n'))
    with pytest.raises(
        ConfigError, match=r"models\[0\].file: expected a .gguf file or a name of the cat.*, got 'qwen'"
    ):
        config.candidates(nothing)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ('[server]\nhost = "0.0.0.0"', "anyone may spend"),
        ('[[models]]\nid="a"\nurl="http://far.example/v1"\napi_key="env:K"', "travels unencrypted"),
        (HOSTED + 'offers = ["tool"]', "did you mean 'tools'?"),
        (HOSTED + '[policies.p]\nneeds = ["vison"]', "did you mean 'vision'?"),
        (HOSTED + "[policies.p]\nepsilon = 0.2", 'epsilon is read only with explore = "epsilon"'),
        (HOSTED + "[policies.p]\nweights = { quality = 1, cost = 3 }", "more cost is preferred"),
        (HOSTED + "[policies.p]\nweights = { cost = -3 }", "gives quality no weight"),
        (HOSTED + '[policies.p]\nneeds = ["vision"]', "no model offers vision: it refuses everything"),
        (HOSTED, "the pool has one model"),
    ],
)
def test_what_is_odd_but_legal_is_warned_of(write, text, warning):
    config = load_config(write(text), environment={"K": "k"})
    profile = Profile(price_in=1.0, offers=frozenset({"tools"}))
    pool = config.candidates(lambda name: profile)
    assert any(warning in said for said in config.warnings_for(pool, lambda name: profile))


def test_a_plain_configuration_has_no_warnings(write):
    config = load_config(write(HOSTED + HOSTED.replace("large", "small")))
    profile = Profile(price_in=1.0, offers=frozenset({"tools"}))
    assert config.warnings_for(config.candidates(lambda name: profile), lambda name: profile) == []


# ---- schema, example, documentation


def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, which the test extra brings")
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def test_the_schema_takes_the_example_and_refuses_what_the_reader_refuses():
    check = validator()
    check.validate(tomllib.loads(example()))
    for text in (
        "[sever]", "[server]\nhosst = 'x'", "[server]\nport = '8080'", "[server]\nport = 65536",
        "[server]\nanswer_model = 'x'", "[server]\nclient_keys = ['sk-1']", "[timeouts]\nidle_s = 0",
        "[[models]]\nurl = 'http://x'", "[[models]]\nid = 'two words'", "[[models]]\nid = 'a'\napi_key = 'sk-1'",
        "[[models]]\nid = 'a'\nability = {code = 'x'}", "[policies.p]\nepsilon = 0", "[policies.p]\ntradeoff = 1",
    ):  # fmt: skip
        assert not check.is_valid(tomllib.loads(text)), text


def test_every_key_is_described_and_every_table_is_closed():
    def walk(node: dict[str, object], path: str) -> None:
        if node.get("type") == "object" and "properties" in node:
            assert node["additionalProperties"] is False, path
            for name, inner in node["properties"].items():  # type: ignore[attr-defined]
                assert inner["description"], f"{path}.{name}"
                walk(inner, f"{path}.{name}")
        for word in ("items", "additionalProperties"):
            if isinstance(node.get(word), dict):
                walk(node[word], path)  # type: ignore[arg-type]

    walk(schema(), "")
    assert set(schema()["properties"]) == {
        "server",
        "router",
        "journal",
        "timeouts",
        "local",
        "models",
        "policies",
        "guards",
    }


def test_the_example_is_the_defaults_said_aloud(write, monkeypatch):
    path = write(example())
    monkeypatch.chdir(path.parent)
    config, defaults = load_config(path), load_config()
    assert dataclasses.replace(config, source=None) == defaults


def test_the_shipped_example_and_schema_are_the_generated_ones():
    again = "run: polyroute check --write-example examples/polyroute.toml (remove the old one first)"
    assert (REPOSITORY / "examples" / "polyroute.toml").read_text(encoding="utf-8") == example(), again
    written = json.loads((REPOSITORY / "examples" / "polyroute.schema.json").read_text(encoding="utf-8"))
    assert written == schema(), again


def test_what_is_commented_out_in_the_example_works_too(write):
    lines = [
        line.removeprefix("# ") if line.startswith(("# [", "# id =", "# url", "# api_key", "# upstream", "# price",
                                                    "# context =", "# offers", "# weights", "# explore", "# budget",
                                                    "# deadline", "# action", "# models")) else line
        for line in example().splitlines()
    ]  # fmt: skip
    config = load_config(write("\n".join(lines)), environment={"OPENAI_API_KEY": "k"})
    assert [model.id for model in config.models] == ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b", "large"]
    assert config.policies["interactive"].explore == "thompson"


def test_the_documentation_lists_every_key():
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert all(f"`{capability}`" in page for capability in CAPABILITIES)
    assert reference() in page, "put the output of polyroute.gateway.example.reference() into docs/configuration.md"


def test_the_documentations_configuration_works(write):
    page = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    config = load_config(write(block), environment={"TEAM_KEY": "t", "OPENAI_API_KEY": "k"})
    assert [model.id for model in config.models] == ["small", "large"]
    assert config.warnings == ()


def test_a_configuration_needs_no_extra():
    blocked = "import sys; sys.modules.update(dict.fromkeys(['msgspec', 'uvicorn', 'prometheus_client', 'pyreqwest']))"
    code = f"{blocked}; from polyroute.gateway.config import load_config; print(len(load_config().models))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


def test_the_config_is_one_value(write):
    path = write(HOSTED)
    assert load_config(path) == load_config(path)
    assert isinstance(load_config(path), Config)
