"""The binary that makes cifar10_features, end to end, on small files in CIFAR-10's format."""

from __future__ import annotations

import contextlib
import json
import platform
import re
import signal
from importlib.metadata import version

import jax
import numpy as np
import pytest
from flax import serialization

from asvrg.errors import DivergedError, InputError
from experiments import cnn, datasets, extract_features
from experiments.cnn import Network
from experiments.datasets import Source
from experiments.datasets.sources import DataFile
from experiments.extract_features import Settings
from tests import small_files
from tests.binaries import run

TINY = Network(channels=4, num_features=12, num_hidden=6)
NUM_TRAIN, NUM_TEST = 30, 12
FLAGS = ("--num_epochs=2", "--batch_size=8", "--num_train=20", "--num_test=10")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with 30 training and 12 test images as --data_dir, and a small network."""
    rng = np.random.default_rng(0)
    counts = {"data_batch_1": NUM_TRAIN, "test_batch": NUM_TEST}
    blobs = {
        name: small_files.batch_file(
            rng.integers(0, 256, (count, 3072), np.uint8), rng.integers(0, 10, count).tolist()
        )
        for name, count in counts.items()
    }
    files = tuple(
        DataFile(
            name,
            "test" if name == "test_batch" else "train",
            "batch",
            (counts[name], 3072),
            len(raw),
            small_files.sha256(raw),
        )
        for name, raw in blobs.items()
    )
    available = {"train": NUM_TRAIN, "test": NUM_TEST}
    source = Source("cifar10", "cifar", 10, (3, 32, 32), available, available, files=files)
    features = small_files.features_source(TINY.num_features, (NUM_TRAIN, NUM_TEST))
    sources = {item.name: item for item in (source, features)}
    monkeypatch.setattr(datasets, "read_sources", lambda: sources)
    monkeypatch.setattr(extract_features, "Network", lambda num_classes: TINY)
    small_files.hide_users_folders(monkeypatch, tmp_path)
    return small_files.write(tmp_path / "data", blobs)


@pytest.fixture
def data(folder):
    return datasets.load("cifar10", folder, seed=0, sources=datasets.read_sources())


def extract(folder, out, *flags):
    return run(extract_features, f"--data_dir={folder}", f"--out={out}", *FLAGS, *flags)


def read(path):
    with np.load(path, allow_pickle=False) as saved:
        return dict(saved)


def interrupt_at(monkeypatch, step, error=None):
    """Has the given step raise the error, or receive the signal of Ctrl-C."""
    steps, train_step = iter(range(step + 1)), cnn.train_step

    def interrupted(*arguments, **named):
        if next(steps) == step:
            if error is not None:
                raise error
            signal.raise_signal(signal.SIGINT)
        return train_step(*arguments, **named)

    monkeypatch.setattr(cnn, "train_step", interrupted)


def test_writes_the_features_and_where_they_come_from(folder, data, tmp_path, capsys):
    out = tmp_path / "made" / "features.npz"
    assert extract(folder, out) == 0
    arrays = read(out)
    provenance = json.loads(str(arrays.pop("provenance")))
    made = provenance["resolved"]
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "train_inputs": ((20, 12), "float32"),
        "train_labels": ((20,), "int32"),
        "test_inputs": ((10, 12), "float32"),
        "test_labels": ((10,), "int32"),
    }
    # The samples, and their order, are those of the pixels' subset of the same size and seed.
    subset = datasets.load("cifar10", folder, 20, 10, 0, datasets.read_sources())
    np.testing.assert_array_equal(arrays["train_labels"], subset.train_labels)
    np.testing.assert_array_equal(arrays["test_labels"], subset.test_labels)

    params = extract_features.train(
        TINY, data, Settings(2, 8, made["lr"], 0), out.with_name("features.npz.checkpoint")
    ).params
    for inputs, expected in (
        (subset.train_inputs, arrays["train_inputs"]),
        (subset.test_inputs, arrays["test_inputs"]),
    ):
        views = cnn.standardise(cnn.central_views(cnn.as_images(inputs, (3, 32, 32))))
        _, features = jax.jit(TINY.apply)({"params": params}, views)
        np.testing.assert_allclose(made["scale"] * features, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.mean(arrays["train_inputs"] ** 2), 1.0, rtol=1e-5)
    assert arrays["train_inputs"].min() == 0.0

    logits, _ = cnn.apply_central(
        params, data.test_inputs, network=TINY, image_shape=data.image_shape
    )
    accuracy = np.mean(np.asarray(logits).argmax(1) == data.test_labels)
    assert made["cnn_test_accuracy"] == accuracy
    assert (made["seed"], made["num_epochs"], made["num_train"], made["num_test"]) == (0, 2, 20, 10)
    assert "12 units" in made["layer"]
    assert provenance["flags"]["batch_size"] == 8
    assert provenance["versions"]["flax"] == version("flax")
    assert provenance["versions"]["python"] == platform.python_version()
    printed = capsys.readouterr()
    assert f"test accuracy of the CNN: {accuracy:.2%} of 12 images" in printed.out
    assert f"features: {out}" in printed.out
    assert re.search(r"6/6 .*epoch=2, loss=", printed.err)


def test_interrupted_and_taken_up_equals_undisturbed(folder, tmp_path, capsys, monkeypatch):
    assert extract(folder, tmp_path / "undisturbed.npz") == 0
    out = tmp_path / "interrupted.npz"
    for step in (2, 2):  # in the first epoch, and again in the second
        with monkeypatch.context() as patch:
            interrupt_at(patch, step)
            assert extract(folder, out) == 130
        assert not out.exists()
    assert "The same command goes on after batch 4." in capsys.readouterr().err
    assert extract(folder, out) == 0
    assert "4/6" in capsys.readouterr().err
    undisturbed, taken_up = read(tmp_path / "undisturbed.npz"), read(out)
    for name in ("train_inputs", "train_labels", "test_inputs", "test_labels"):
        np.testing.assert_array_equal(taken_up[name], undisturbed[name])


def test_an_interrupt_that_a_callback_swallows_is_not_lost(folder, tmp_path, capsys, monkeypatch):
    train_step = cnn.train_step

    def interrupted(*arguments, **named):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return train_step(*arguments, **named)

    monkeypatch.setattr(cnn, "train_step", interrupted)
    assert extract(folder, tmp_path / "features.npz") == 130
    assert "The same command goes on after batch 1." in capsys.readouterr().err


def test_killed_process_loses_only_what_follows_the_last_checkpoint(data, tmp_path, monkeypatch):
    monkeypatch.setattr(extract_features, "CHECKPOINT_STEPS", 2)
    settings = Settings(2, 8, 0.01, 0)
    expected = extract_features.train(TINY, data, settings, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5, SystemError)  # nothing is saved on the way out of this one
        with pytest.raises(SystemError):
            extract_features.train(TINY, data, settings, tmp_path / "killed")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, SystemError)  # only two steps are left
        actual = extract_features.train(TINY, data, settings, tmp_path / "killed")
    assert actual.step == expected.step == 6
    jax.tree.map(np.testing.assert_array_equal, actual.params, expected.params)
    jax.tree.map(np.testing.assert_array_equal, actual.momentum, expected.momentum)


def test_seed_decides(data, tmp_path):
    one, two = (
        extract_features.train(TINY, data, Settings(1, 8, 0.01, seed), tmp_path / str(seed)).params
        for seed in (1, 2**32 - 1)
    )
    assert np.any(one["features"]["kernel"] != two["features"]["kernel"])


def test_finished_says_that_the_file_is_there(folder, tmp_path, capsys, monkeypatch):
    out = tmp_path / "features.npz"
    assert extract(folder, out) == 0
    before = out.read_bytes()
    capsys.readouterr()
    interrupt_at(monkeypatch, 0)
    assert extract(folder, out) == 0
    assert capsys.readouterr().out == f"{out} is there already, made with these flags.\n"

    for flag in ("--seed=1", "--num_train=21", "--lr=0.5"):
        assert extract(folder, out, flag) == 2
        assert f"got {flag}: name another file" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_the_data_set_is_loaded_from_where_it_is_written(folder, tmp_path, capsys):
    assert run(extract_features, f"--data_dir={folder}", *FLAGS) == 0
    out = tmp_path / "cache" / "asvrg" / "cifar10_features.npz"
    assert f"features: {out}" in capsys.readouterr().out
    assert out.with_name("cifar10_features.npz.checkpoint").exists()
    loaded = datasets.load("cifar10_features", folder, 15, sources=datasets.read_sources())
    written = read(out)
    np.testing.assert_array_equal(loaded.train_inputs, written["train_inputs"][:15])
    np.testing.assert_array_equal(loaded.test_inputs, written["test_inputs"])
    pixels = datasets.load("cifar10", folder, 15, 10, sources=datasets.read_sources())
    np.testing.assert_array_equal(loaded.train_labels, pixels.train_labels)
    np.testing.assert_array_equal(loaded.test_labels, pixels.test_labels)


def test_more_samples_need_no_new_training(folder, tmp_path, monkeypatch):
    out = tmp_path / "cifar10_features.npz"
    assert extract(folder, out) == 0
    few = read(out)
    with pytest.raises(InputError, match="must be at most 20") as error:
        datasets.load("cifar10_features", tmp_path, 30, sources=datasets.read_sources())
    # What the sentence says.
    assert f"delete that file and run python -m the.maker --num_train=30 --out={out}." in str(
        error.value
    )
    out.unlink()
    interrupt_at(monkeypatch, 0)
    assert extract(folder, out, "--num_train=30") == 0
    many = read(out)
    scales = [json.loads(str(a["provenance"]))["resolved"]["scale"] for a in (few, many)]
    np.testing.assert_allclose(
        many["train_inputs"][:20] / scales[1], few["train_inputs"] / scales[0], rtol=1e-4, atol=1e-6
    )


def test_checkpoint_of_other_flags_or_damaged_is_refused(folder, tmp_path, capsys, monkeypatch):
    out, checkpoint = tmp_path / "features.npz", tmp_path / "features.npz.checkpoint"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        assert extract(folder, out) == 130
    whole = checkpoint.read_bytes()
    capsys.readouterr()
    assert extract(folder, out, "--num_epochs=3") == 2
    message = capsys.readouterr().err
    assert f"{checkpoint} is a training of --num_epochs=2, got --num_epochs=3" in message
    assert checkpoint.read_bytes() == whole

    saved = serialization.msgpack_restore(whole)
    saved["state"]["params"]["conv1"]["kernel"] = np.zeros((5, 5, 3, 7), np.float32)
    other_network = serialization.msgpack_serialize(saved)
    for damaged in (
        whole[:-100],
        whole + b"x",
        b"",
        b"\x01",
        b"\x80",
        b"not a checkpoint",
        whole.replace(b"conv1", b"conv3"),
        other_network,
    ):
        checkpoint.write_bytes(damaged)
        assert extract(folder, out) == 2
        assert "is not the state of a training, or is damaged" in capsys.readouterr().err
        assert checkpoint.read_bytes() == damaged
    assert not out.exists()


def test_divergence_is_a_sentence_and_leaves_no_checkpoint(data, tmp_path, monkeypatch):
    monkeypatch.setattr(extract_features, "CHECKPOINT_STEPS", 1)
    with (
        np.errstate(all="ignore"),
        pytest.raises(DivergedError, match="epoch [12]: the step .--lr. is probably too large"),
    ):
        extract_features.train(TINY, data, Settings(2, 8, 1e20, 0), tmp_path / "checkpoint")
    assert list(tmp_path.glob("checkpoint*")) == []


def test_features_without_an_active_unit_are_a_sentence(folder, tmp_path, capsys, monkeypatch):
    """As after steps that are too large but not so large that the loss overflows."""
    dead = extract_features.Outputs(np.zeros((12, 10), np.float32), np.zeros((12, 12), np.float32))
    monkeypatch.setattr(extract_features, "outputs", lambda *arguments: dead)
    assert extract(folder, tmp_path / "features.npz", "--lr=0.5") == 1
    assert "all features are 0, as no unit is active any more" in capsys.readouterr().err
    assert not (tmp_path / "features.npz").exists()


BAD_FLAGS = [
    (["--num_epochs=0"], "--num_epochs must be a whole number of at least 1, got 0."),
    (["--batch_size=0"], "--batch_size must be a whole number from 1 to 30, got 0."),
    (["--batch_size=31"], "--batch_size must be a whole number from 1 to 30, got 31."),
    (["--lr=0"], "--lr must be a finite number above 0, got 0.0."),
    (["--lr=nan"], "--lr must be a finite number above 0, got nan."),
    (["--seed=-1"], "--seed must be a whole number from 0 to 4294967295, got -1."),
    (["--num_train=31"], "--num_train must be a whole number from 1 to 30, got 31."),
    (["--num_test=0"], "--num_test must be a whole number from 1 to 12, got 0."),
    (["--data_dir=/nonexistent"], "--data_dir=/nonexistent does not exist"),
    (["--checkpoint_dir=/dev/null"], "--checkpoint_dir must lie in a folder"),
    (["--epochs=3"], "epochs"),
    (["cifar10"], "flags must have the form --name=value, got 'cifar10'."),
]


@pytest.mark.parametrize(("flags", "sentence"), BAD_FLAGS, ids=lambda value: str(value)[:40])
def test_bad_flags_give_a_sentence_and_write_nothing(folder, tmp_path, capsys, flags, sentence):
    out = tmp_path / "features.npz"
    assert extract(folder, out, *flags) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("content", [b"precious", b"", b"PK\x03\x04"])
def test_other_files_are_not_overwritten(folder, tmp_path, capsys, content):
    out = tmp_path / "features.npz"
    out.write_bytes(content)
    assert extract(folder, out) == 2
    assert "exists and does not hold features: name another file." in capsys.readouterr().err
    assert out.read_bytes() == content


def test_other_archives_are_not_overwritten(folder, tmp_path, capsys):
    out = tmp_path / "features.npz"
    for save, arrays in (
        (np.savez, {"x": np.zeros(3)}),
        (np.savez, {"provenance": np.array("[]")}),
        (np.savez, {"provenance": np.array('{"resolved": {}}')}),
        (np.save, {"arr": np.zeros(3)}),
    ):
        with open(out, "wb") as file:
            save(file, **arrays)
        assert extract(folder, out) == 2
        assert "does not hold features" in capsys.readouterr().err
    assert extract(folder, out / "below.npz") == 2
    assert "--out must lie in a folder that can be made" in capsys.readouterr().err
