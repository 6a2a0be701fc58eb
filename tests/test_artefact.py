from __future__ import annotations

import io
import json
import pickle
import zipfile

import numpy as np
import pytest

from polyroute import artefact
from polyroute.errors import ArtefactError, UnknownNameError
from polyroute.routers.calibrate import Calibrated
from polyroute.routers.cluster import Cluster
from polyroute.routers.constant import Constant
from polyroute.routers.knn import KNN
from polyroute.routers.linear import Linear
from polyroute.routers.mix import Mix, Together
from polyroute.routers.price import Price
from polyroute.types import Candidate, Profile
from tests.routers.tables import toy

POOL = [
    Candidate(
        "full",
        "agent",
        Profile(
            price_in=0.5, price_out=1.5, context=8192, offers=frozenset({"tools", "vision"}),
            embedding=np.array([0.1, 0.2], np.float32), ability={"code": 1.25}, ability_std=0.3,
            region="eu", tokens_per_s=80.0, first_token_s=0.25,
        ),
    ),
    Candidate("plain"),
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "r.npz"
    artefact.save(KNN(5).fit(toy()), path, features="toy-1", pool=POOL, info={"note": "grüße", "rows": 60})
    return path


def rewritten(path, **changes):
    """The file again with arrays or header fields replaced; None leaves one out."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays["header"].tobytes())
    for name, value in changes.items():
        if name in header:
            header[name] = value
        elif value is None:
            del arrays[name.replace("__", "/")]
        else:
            arrays[name.replace("__", "/")] = value
    if "header" in arrays and "header" not in changes:
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def test_everything_saved_beside_the_router_comes_back(path):
    loaded = artefact.load(path)
    assert (loaded.kind, loaded.features, loaded.version) == ("knn", "toy-1", 1)
    assert loaded.info == {"note": "grüße", "rows": 60}
    full, plain = loaded.pool
    assert plain == POOL[1] or plain.profile.price_in == 0.0
    for name in Profile.__dataclass_fields__:
        ours, theirs = getattr(POOL[0].profile, name), getattr(full.profile, name)
        assert np.array_equal(ours, theirs) if name == "embedding" else ours == theirs
    assert (full.id, full.kind) == ("full", "agent")
    assert plain.profile.context is None


def test_the_fingerprint_names_the_content(path, tmp_path):
    first = artefact.load(path).fingerprint
    assert len(first) == 12
    other = tmp_path / "other.npz"
    assert (
        artefact.save(KNN(5).fit(toy()), other, features="toy-1", pool=POOL, info={"note": "grüße", "rows": 60})
        == first
    )
    assert artefact.save(KNN(6).fit(toy()), other, features="toy-1", pool=POOL) != first
    assert artefact.load(other).fingerprint != first


def test_routers_inside_routers_come_back(tmp_path):
    train, test = toy(), toy(9, seed=1)
    prior = Calibrated(Cluster(3)).fit(train)
    router = Together([
        Mix([KNN(5, prior=prior), Linear(prior=Mix([Constant("quality", 0.4, 0.1), Cluster(2).fit(train)]))], [1, 2]),
        Price(),
    ]).fit(train)  # fmt: skip
    artefact.save(router, tmp_path / "r.npz", features="toy-1", pool=test.pool)
    loaded = artefact.load(tmp_path / "r.npz").router
    for name, estimate in router.predict(test.queries, test.pool).items():
        for ours, theirs in zip(estimate, loaded.predict(test.queries, test.pool)[name], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert isinstance(loaded.routers[0].routers[0].prior.router, Cluster)


def test_a_save_that_fails_leaves_the_old_file_and_no_scraps(path, tmp_path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(artefact.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        artefact.save(KNN(6).fit(toy()), path, features="toy-1", pool=POOL)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_class_the_table_does_not_name_cannot_be_saved(tmp_path):
    class Own(KNN):
        pass

    with pytest.raises(UnknownNameError, match="Own"):
        artefact.save(Own().fit(toy()), tmp_path / "r.npz", features="toy-1", pool=POOL)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ArtefactError, match="No such file"):
        artefact.load(tmp_path / "nothing.npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 and no more", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_npz(tmp_path, content):
    (tmp_path / "r.npz").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"r\.npz"):
        artefact.load(tmp_path / "r.npz")


def test_a_file_cut_anywhere(path):
    content = path.read_bytes()
    for size in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:size])
        with pytest.raises(ArtefactError):
            artefact.load(path)


def test_a_byte_flipped_in_an_array(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match="damaged"):
        artefact.load(path)


def test_pickles_are_never_opened(path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    trap = np.empty(1, dtype=object)
    trap[0] = Trap()
    rewritten(path, router__x=trap)
    with pytest.raises(ArtefactError, match="cannot be read"):
        artefact.load(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ArtefactError, match="another kind"):
        artefact.load(path)


def test_compressed_files_are_refused(path):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez_compressed(path, **arrays)
    with pytest.raises(ArtefactError, match="compressed"):
        artefact.load(path)


def test_an_array_that_claims_to_be_huge(path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (2**60,)})
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("huge.npy", buffer.getvalue())
    with pytest.raises(ArtefactError):
        artefact.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"header": None}, "without a header"),
        ({"header": np.zeros(3)}, "without a header"),
        ({"header": np.frombuffer(b"{", np.uint8)}, "not JSON"),
        ({"header": np.frombuffer(b"[1]", np.uint8)}, "another format"),
        ({"header": np.frombuffer(b"\xff\xfe", np.uint8)}, "not JSON"),
        ({"header": np.frombuffer(b"[" * 100_000, np.uint8)}, "not JSON"),
        ({"format": "something-else"}, "another format"),
        ({"version": 2}, "expected version 1, got version 2"),
        ({"pool": [{"id": "a"}]}, "no 'profile'"),
        ({"pool": [{"id": "a", "kind": "model", "profile": {"colour": 1}}]}, "colour"),
        ({"pool": 7}, "do not fit"),
        ({"router": 7}, "do not fit"),
        ({"router": {}}, "no 'kind'"),
        ({"router": {"kind": "os:system", "params": {}, "arrays": {}}}, "does not know"),
        ({"router": {"kind": "polyroute.routers.knn:KNN", "params": {}, "arrays": {}}}, "does not know"),
        ({"router": {"kind": ["knn"], "params": {}, "arrays": {}}}, "do not fit"),
        ({"router": {"kind": "knn", "params": {"candidates": [], "colour": 1}, "arrays": {}}}, "colour"),
        ({"router": {"kind": "knn", "params": {"candidates": [], "k": 0}, "arrays": {}}}, "k: expected"),
        ({"router": {"kind": "knn", "params": {"candidates": []}, "arrays": {"x": "nowhere"}}}, "no 'nowhere'"),
        ({"router__x": None}, "no 'router/x'"),
        ({"router__x": np.zeros((60, 6, 2), np.float32)}, "x: expected shape"),
        ({"router__x": np.zeros((59, 6), np.float32)}, "table: expected shape"),
        ({"router__table": np.zeros((60, 3, 9))}, "table: expected shape"),
        ({"router__table": np.full((60, 3, 4), "word")}, "do not fit"),
        ({"router__sums": np.zeros((3, 5))}, "sums: expected shape"),
    ],
)
def test_a_header_or_array_that_does_not_fit(path, changes, message):
    with pytest.raises(ArtefactError, match=message) as raised:
        artefact.load(rewritten(path, **changes))
    assert raised.value.path == str(path)


@pytest.mark.parametrize("name", ["weight", "score", "sums", "group", "posterior", "directions", "offset", "tokens"])
def test_a_linear_router_with_an_array_of_another_shape(tmp_path, name):
    path = tmp_path / "r.npz"
    artefact.save(Linear().fit(toy()), path, features="toy-1", pool=POOL)
    with np.load(path) as file:
        grown = np.concatenate([file[f"router/{name}"]] * 2, axis=-1)
    with pytest.raises(ArtefactError, match="shape"):
        artefact.load(rewritten(path, **{f"router__{name}": grown}))


def test_a_linear_router_whose_groups_point_nowhere(tmp_path):
    path = tmp_path / "r.npz"
    artefact.save(Linear().fit(toy()), path, features="toy-1", pool=POOL)
    with pytest.raises(ArtefactError, match="posterior"):
        artefact.load(rewritten(path, router__group=np.array([0, 1, 2, 4])))


def test_names_of_routers():
    assert artefact.resolve_router("knn") is KNN
    assert artefact.resolve_router("polyroute.routers.mix:Mix") is Mix
    with pytest.raises(UnknownNameError, match="'linear'"):
        artefact.resolve_router("liner")
    with pytest.raises(UnknownNameError):
        artefact.resolve_router("polyroute.routers.knn:Nobody")
    with pytest.raises(UnknownNameError):
        artefact.resolve_router("no.such.module:Router")


def test_notes_that_are_not_json_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        artefact.save(KNN(5).fit(toy()), tmp_path / "r.npz", features="toy-1", pool=POOL, info={"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
