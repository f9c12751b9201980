"""Where data sets are found, and how they are downloaded, from servers on this machine."""

from __future__ import annotations

import http.server
import sys
import threading

import numpy as np
import pytest

from asvrg.errors import InputError
from experiments.datasets import load
from experiments.datasets.files import download, locate
from experiments.datasets.sources import Archive
from tests.small_files import (
    FEATURES,
    IMAGES,
    LABELS,
    cifar_source,
    features_file,
    features_source,
    hide_users_folders,
    idx_file,
    numbered_images,
    sha256,
    tar_file,
    write,
)


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch, tmp_path):
    hide_users_folders(monkeypatch, tmp_path)


# Two data sets whose files have the same names, and a mirror where nobody listens.
NOBODY = ("http://127.0.0.1:9/",)
MNIST, MNIST_FILES = numbered_images(urls=NOBODY)
FASHION, FASHION_FILES = numbered_images("fashion_mnist", first=100, urls=NOBODY)
BOTH = {"mnist": MNIST, "fashion_mnist": FASHION}


@pytest.mark.parametrize("place", ["", "fashion_mnist", "fashion-mnist"])
def test_fashion_mnist_does_not_read_the_files_of_mnist(tmp_path, place):
    folder = tmp_path / "data"
    write(folder / place, MNIST_FILES)
    with pytest.raises(InputError, match=r"_mnist is not, .* \(mnist's files of the same"):
        load("fashion_mnist", folder, sources=BOTH)
    other = "fashion-mnist" if place == "fashion_mnist" else "fashion_mnist"
    write(folder / other, FASHION_FILES)
    dataset = load("fashion_mnist", folder, sources=BOTH)
    assert np.rint(dataset.train_inputs.min() * 255) == 100
    if not place:
        assert load("mnist", folder, sources=BOTH).train_inputs.min() == 0


def test_a_file_of_neither_is_an_error_and_not_passed_over(tmp_path):
    damaged = idx_file(np.arange(36, dtype=np.uint8).reshape(6, 2, 3)[::-1])
    write(tmp_path, FASHION_FILES | {IMAGES: damaged})
    with pytest.raises(InputError, match=f"{IMAGES} is corrupted or another file"):
        load("fashion_mnist", tmp_path, sources=BOTH)


def test_the_folder_given_comes_before_the_variable_and_that_before_the_cache(
    tmp_path, monkeypatch
):
    cache, variable, given = tmp_path / "cache" / "asvrg", tmp_path / "variable", tmp_path / "given"
    for folder in (cache, variable, given):
        write(folder / "mnist", MNIST_FILES)

    def folder_of(file, data_dir):
        return locate(MNIST, BOTH, data_dir).files[file].parents[1]

    assert folder_of(LABELS, None) == cache
    monkeypatch.setenv("ASVRG_DATA_DIR", str(variable))
    assert folder_of(LABELS, None) == variable
    assert folder_of(LABELS, given) == given
    # What the folder lacks is taken from the cache.
    (given / "mnist" / LABELS).unlink()
    assert folder_of(LABELS, given) == cache
    assert folder_of(IMAGES, given) == given


def test_folders_that_do_not_exist(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"--data_dir=\S+/none does not exist: expected a folder"):
        load("mnist", tmp_path / "none", sources=BOTH)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ASVRG_DATA_DIR", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"ASVRG_DATA_DIR=\S+/file is not a folder"):
        load("mnist", sources=BOTH)


@pytest.mark.parametrize("place", ["", "cifar10_features"])
def test_features_are_found_in_the_users_folder_and_where_their_command_puts_them(
    tmp_path, monkeypatch, place
):
    source = features_source()
    sources = {source.name: source}
    cache, given = tmp_path / "cache" / "asvrg", tmp_path / "given"
    write(cache, {FEATURES: features_file()})
    write(given / place, {FEATURES: features_file()})
    assert locate(source, sources, given).archive == given / place / FEATURES
    assert locate(source, sources, None).archive == cache / FEATURES
    monkeypatch.setenv("ASVRG_DATA_DIR", str(given))
    assert locate(source, sources, None).archive == given / place / FEATURES
    (given / place / FEATURES).unlink()
    assert locate(source, sources, given).archive == cache / FEATURES


def test_features_that_were_not_made_yet(tmp_path):
    with pytest.raises(InputError) as error:
        load("cifar10_features", tmp_path)
    assert str(error.value) == (
        f"--dataset=cifar10_features is not in {tmp_path}/cifar10_features, {tmp_path}, "
        f"{tmp_path}/cache/asvrg/cifar10_features, {tmp_path}/cache/asvrg: run python -m "
        "experiments.extract_features to make it, name the folder that holds it with --data_dir "
        "or ASVRG_DATA_DIR, or use --dataset=digits, which needs no download."
    )


class Mirror(http.server.ThreadingHTTPServer):
    """Serves `blobs`, only half of them and hangs up if `cut`, or says nothing if `silent`."""

    def __init__(self, blobs, *, cut=False, silent=False):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.blobs, self.cut, self.silent = blobs, cut, silent
        self.asked_for = []
        self.stopping = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.removeprefix("/")
        self.server.asked_for.append(name)
        if self.server.silent:
            self.server.stopping.wait(30)
        elif name not in self.server.blobs:
            self.send_error(404)
        else:
            raw = self.server.blobs[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw[: len(raw) // 2] if self.server.cut else raw)

    def log_message(self, *args):
        """Says nothing."""


@pytest.fixture
def mirror():
    """A function that starts a mirror; all are stopped at the end."""
    started = []

    def start(*args, **options):
        server = Mirror(*args, **options)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()


def files_under(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_missing_files_are_downloaded_once_and_kept_in_the_cache(tmp_path, mirror):
    server = mirror(MNIST_FILES)
    sources = {"mnist": MNIST._replace(urls=(server.url,))}
    folder = write(tmp_path / "data", {IMAGES: MNIST_FILES[IMAGES]})
    rest = sorted(set(MNIST_FILES) - {IMAGES})
    first = load("mnist", folder, sources=sources)
    assert sorted(server.asked_for) == rest
    assert files_under(tmp_path / "cache") == rest
    assert files_under(folder) == [IMAGES]
    second = load("mnist", folder, sources=sources)
    assert len(server.asked_for) == 3
    np.testing.assert_array_equal(first.train_inputs, second.train_inputs)


def test_the_archive_of_cifar_is_downloaded_once_and_read(mirror):
    source, blobs = cifar_source()
    packed = tar_file(blobs)
    server = mirror({"c.tar.gz": packed})
    archives = (Archive("c.tar.gz", sha256(packed)),)
    sources = {"cifar10": source._replace(archives=archives, urls=(server.url,))}
    for _ in range(2):
        dataset = load("cifar10", sources=sources)
        np.testing.assert_array_equal(np.sort(dataset.train_labels), [0, 0, 1, 1, 2, 2])
    assert server.asked_for == ["c.tar.gz"]


def test_a_download_that_got_damaged_in_the_cache_is_fetched_again(tmp_path, mirror):
    server = mirror(MNIST_FILES)
    damaged = {LABELS: MNIST_FILES[LABELS][:-9]}
    write(tmp_path / "cache" / "asvrg" / "mnist", MNIST_FILES | damaged)
    load("mnist", sources={"mnist": MNIST._replace(urls=(server.url,))})
    assert server.asked_for == [LABELS]


RAW = bytes(range(256)) * 1000
LIMITS = {"wait": 0.0, "timeout": (0.5, 0.5)}


@pytest.mark.parametrize(
    ("blobs", "options", "reason"),
    [
        ({"f": RAW[::-1]}, {}, "wrong SHA-256"),
        ({"f": RAW}, {"cut": True}, "the transfer broke off"),
        ({}, {}, "HTTP status 404"),
        ({}, {"silent": True}, "no answer in time"),
    ],
    ids=["wrong bytes", "hangs up", "not found", "silent"],
)
def test_a_failing_mirror_leaves_nothing_and_the_next_is_tried(
    tmp_path, mirror, blobs, options, reason
):
    bad, good = mirror(blobs, **options), mirror({"f": RAW})
    folder = tmp_path / "downloads"
    with pytest.raises(InputError, match=rf"f could not be downloaded to \S+ \(\S+: {reason}\)"):
        download("f", sha256(RAW), [bad.url], folder, **LIMITS)
    assert bad.asked_for == ["f", "f"]  # two rounds
    assert files_under(tmp_path) == []
    path = download("f", sha256(RAW), [bad.url, good.url], folder, **LIMITS)
    assert path.read_bytes() == RAW
    assert files_under(tmp_path) == ["f"]


def test_without_a_network_the_sentence_says_what_to_do(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError) as error:
        load("mnist", tmp_path / "data", sources=BOTH)
    for part in (
        f"in {tmp_path}/data/mnist, {tmp_path}/data, {tmp_path}/cache/asvrg/mnist, ",
        f"{IMAGES} could not be downloaded to {tmp_path}/cache/asvrg/mnist (127.0.0.1:",
        "no connection): name the folder that holds it with --data_dir or ASVRG_DATA_DIR",
        "or use --dataset=digits, which needs no download.",
    ):
        assert part in str(error.value)


def test_a_cache_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(InputError, match=rf"could not be downloaded to {tmp_path}/cache/.*'"):
        load("mnist", sources=BOTH)


@pytest.mark.parametrize(
    ("module", "name", "sentence"),
    [
        ("pooch", "cifar10_features", r"needs the package pooch: install asvrg\[experiments\], or"),
        ("pooch", "mnist", r"needs the package pooch: install asvrg\[experiments\], or name the"),
        ("sklearn.datasets", "digits", r"needs scikit-learn, .* install asvrg\[experiments\]"),
    ],
)
def test_packages_that_are_not_installed(monkeypatch, module, name, sentence):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=sentence):
        load(name)
