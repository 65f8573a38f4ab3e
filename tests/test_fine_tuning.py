"""The epoch is chosen on validation, runs repeat to the bit, and predictions are probabilities."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from crc_helpers import fine_tuning, runs
from crc_helpers.augmentation import VIEWS, one_view
from crc_helpers.fine_tuning import fine_tune, linear_probe, predict, probe_classifier, validate
from crc_helpers.models import Classifier, Encoder
from crc_helpers.pretraining import Training, embed

SETTINGS = {"size": 16, "epochs": 4, "batch": 8, "lr": 1e-3}
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@pytest.fixture(autouse=True)
def every_epoch_kept(monkeypatch):
    monkeypatch.setattr(runs, "SAVE_EVERY", 0)


@pytest.fixture(scope="module")
def tiles():
    """Dark and light tiles, uint8 (24, 3, 16, 16), with labels (24,)."""
    rng, labels = np.random.default_rng(0), np.arange(24) % 2
    levels = 70 + 90 * labels[:, None, None, None]
    return (levels + rng.integers(-40, 41, (24, 3, 16, 16))).astype(np.uint8), labels


def make_classifier(seed=0, classes=2):
    torch.manual_seed(seed)
    return Classifier(Encoder("resnet8"), classes)


def train(tiles, fabric, start=0, validation=True, **changes):
    """Train on 16 of the tiles from the weights of seed `start`: (the classifier, the log)."""
    images, labels = tiles
    classifier, end = make_classifier(start), 24 if validation else 16
    checkpoint = changes.pop("checkpoint", None)
    parts = [(images[part], labels[part]) for part in (slice(16), slice(16, end))]
    training = Training(**SETTINGS | changes)
    log = fine_tune(classifier, *parts, VIEWS["gentle"], fabric, training, checkpoint=checkpoint)
    return classifier, log


def weights(classifier):
    return {k: v.clone() for k, v in classifier.state_dict().items()}


def equal(first, second):
    return all(torch.equal(value, second[key]) for key, value in first.items())


def assert_same(first, second):
    """Hold two results of `train` equal to the bit."""
    assert equal(first[0].state_dict(), second[0].state_dict())
    first, second = (log.drop(columns="seconds") for _, log in (first, second))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


@pytest.fixture
def scripted(monkeypatch):
    """Return a function that scripts the validation losses; KeyboardInterrupt may be one. It
    returns a list that will hold the weights of each epoch.
    """

    def script(*losses):
        seen, coming = [], iter(losses)

        def fake(classifier, *_):
            loss = next(coming)
            if loss is KeyboardInterrupt:
                raise loss
            seen.append(weights(classifier))
            return {"val_loss": loss, "val_balanced_accuracy": 0.5}

        monkeypatch.setattr(fine_tuning, "validate", fake)
        return seen

    return script


# --- The chosen epoch ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "best"), [([5, 6, 7, 8], 0), ([8, 5, 5, 7], 1), ([8, 7, 6, 5], 3)]
)
def test_the_weights_left_are_those_of_the_first_lowest_validation_loss(
    tiles, fabric, scripted, losses, best
):
    epochs = scripted(*losses)
    classifier, log = train(tiles, fabric)
    assert [equal(weights(classifier), e) for e in epochs] == [i == best for i in range(4)]
    assert list(log["chosen"]) == [i == best for i in range(4)]


def test_the_chosen_row_is_the_classifier_that_is_left(tiles, fabric):
    classifier, log = train(tiles, fabric)
    chosen = log[log["chosen"]].iloc[0]
    assert log["chosen"].sum() == 1 and chosen["val_loss"] == log["val_loss"].min()
    found = validate(classifier, tiles[0][16:], tiles[1][16:], 16, fabric)
    assert found == {k: chosen[k] for k in ("val_loss", "val_balanced_accuracy")}


def test_without_a_validation_set_the_last_epoch_is_left(tiles, fabric, tmp_path):
    checkpoint = tmp_path / "run.ckpt"
    classifier, log = train(tiles, fabric, validation=False, checkpoint=checkpoint)
    assert list(log["chosen"]) == [False, False, False, True]
    assert "val_loss" not in log
    (kept,) = tmp_path.glob("run_*.ckpt")
    assert equal(torch.load(kept, weights_only=True)["model"], classifier.state_dict())


def test_validation_is_cross_entropy_and_the_mean_recall(tiles, fabric):
    images, labels = tiles[0], np.where(np.arange(24) < 18, 0, 1)
    classifier = make_classifier()
    probabilities = predict(classifier, images, 16, fabric)
    recalls = [(probabilities[labels == c].argmax(axis=1) == c).mean() for c in (0, 1)]
    found = validate(classifier, images, labels, 16, fabric)
    assert found["val_loss"] == pytest.approx(log_loss(labels, probabilities), abs=1e-5)
    assert found["val_balanced_accuracy"] == pytest.approx(np.mean(recalls))


# --- Repeating and resuming ----------------------------------------------------------------------


@pytest.mark.parametrize("losses", [(0.1, 0.3, 0.2, 0.4), (0.4, 0.3, 0.2, 0.1)])
def test_an_interrupted_run_goes_on_to_the_same_classifier(
    tiles, fabric, scripted, tmp_path, losses
):
    scripted(*losses)
    whole = train(tiles, fabric)
    kept = {"checkpoint": tmp_path / "run.ckpt"}
    scripted(*losses[:2], KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(tiles, fabric, **kept)
    scripted(*losses[2:])  # two epochs are left, and the first loss is known from the checkpoint
    assert_same(whole, train(tiles, fabric, **kept))


def test_a_finished_run_is_not_trained_again(tiles, fabric, tmp_path):
    kept = {"checkpoint": tmp_path / "run.ckpt", "epochs": 2}
    first, again = train(tiles, fabric, **kept), train(tiles, fabric, **kept)
    assert_same(first, again)
    assert list(first[1]["seconds"]) == list(again[1]["seconds"])


def test_other_settings_labels_or_starts_have_a_state_of_their_own(tiles, fabric, tmp_path):
    images, labels = tiles
    kept = {"checkpoint": tmp_path / "run.ckpt", "epochs": 2}
    for of, change in (
        (tiles, {}),
        (tiles, {"seed": 5}),
        ((images, 1 - labels), {}),
        (tiles, {"start": 9}),
    ):
        found = train(of, fabric, **kept, **change)
        assert_same(found, train(of, fabric, epochs=2, **change))
    assert len(list(tmp_path.glob("run_*.ckpt"))) == 4


def test_every_epoch_draws_views_of_its_own(tiles, fabric, monkeypatch):
    views = []
    recorded = lambda *given: views.append(one_view(*given)) or views[-1]  # noqa: E731
    monkeypatch.setattr(fine_tuning, "one_view", recorded)
    train(tiles, fabric, epochs=2, batch=16)  # one batch an epoch, of the same tiles
    assert len(views) == 2 and not torch.equal(views[0], views[1])


# --- Learning and refusing -----------------------------------------------------------------------


def test_a_classifier_learns_dark_from_light(tiles, fabric):
    classifier, log = train(tiles, fabric, epochs=8, batch=4)
    assert log["loss"].iloc[-1] < 0.5 * log["loss"].iloc[0]
    predicted = predict(classifier, tiles[0][16:], 16, fabric).argmax(axis=1)
    np.testing.assert_array_equal(predicted, tiles[1][16:])


def test_fewer_labelled_tiles_than_a_batch_are_refused(tiles, fabric):
    with pytest.raises(ValueError, match=r"16 tiles.*FINE_TUNE_BATCH"):
        train(tiles, fabric, batch=17)


def test_a_loss_that_is_no_number_ends_the_run(tiles, fabric, scripted):
    with pytest.raises(FloatingPointError, match=r"loss of epoch 1 .*lower FINE_TUNE_LR"):
        train(tiles, fabric, lr=1e30)
    words = "validation loss of epoch 1 is nan: lower FINE_TUNE_LR"
    scripted(float("nan"))
    with pytest.raises(FloatingPointError, match=words):
        train(tiles, fabric)


# --- Predictions ---------------------------------------------------------------------------------


def test_predictions_are_probabilities_of_every_class(tiles, fabric):
    found = predict(make_classifier(classes=3), tiles[0], 16, fabric)
    assert found.shape == (24, 3) and found.dtype == np.float64
    assert (found > 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-12)


def test_floats_in_place_of_bytes_are_refused(tiles, fabric):
    floats = tiles[0].astype(np.float32) / 255
    with pytest.raises(ValueError, match="float32: give uint8"):
        predict(make_classifier(), floats, 16, fabric)


# --- The linear probe ----------------------------------------------------------------------------


def make_features(n, signal, classes=2, seed=0):
    """Features (n, 10) whose first entries carry the class with this strength, and labels."""
    labels = np.arange(n) % classes
    features = torch.randn(n, 10, generator=torch.Generator().manual_seed(seed))
    features[torch.arange(n), torch.from_numpy(labels)] += signal
    return features, labels


def strength(probe):
    return probe[-1].C


@pytest.mark.parametrize("signal", [0.0, 1.0, 8.0])
def test_a_probe_has_the_strength_with_the_lowest_validation_loss(signal):
    features, labels = make_features(60, signal)
    val_features, val_labels = make_features(40, signal, seed=1)
    scaler = StandardScaler().fit(features)
    losses = {}
    for c in STRENGTHS:
        regression = LogisticRegression(C=c, max_iter=1000, class_weight="balanced")
        regression.fit(scaler.transform(features), labels)
        losses[c] = log_loss(val_labels, regression.predict_proba(scaler.transform(val_features)))
    chosen = strength(linear_probe(features, labels, val_features, val_labels))
    assert chosen == min(losses, key=losses.get)


def test_a_probe_without_a_validation_set_has_a_fixed_strength():
    features, labels = make_features(60, 2.0)
    probe = linear_probe(features, labels, features[:0], labels[:0])
    assert strength(probe) == 0.01
    assert probe.predict_proba(features.numpy()).shape == (60, 2)


def test_a_probe_bears_a_class_that_validation_lacks():
    features, labels = make_features(60, 2.0, classes=3)
    few = labels[:20] < 2
    probe = linear_probe(features, labels, features[:20][few], labels[:20][few])
    assert probe.predict_proba(features.numpy()).shape == (60, 3)


def test_a_probe_weighs_classes_alike():
    features, labels = make_features(1000, 1.0)
    few = np.flatnonzero((labels == 0) | (np.arange(1000) < 100))  # 500 and 50
    probe = linear_probe(features[few], labels[few], features[:0], labels[:0])
    recall = [(probe.predict(features[labels == c].numpy()) == c).mean() for c in (0, 1)]
    assert abs(recall[0] - recall[1]) < 0.1


@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_as_last_layer_says_what_the_probe_says(fabric, classes):
    rng, encoder = np.random.default_rng(0), Encoder("resnet8")
    images = rng.integers(0, 256, (30, 3, 16, 16), np.uint8)
    images[np.arange(30) % classes == 1] //= 3
    labels = np.arange(30) % classes
    features = embed(encoder, images, 16, fabric)
    probe = linear_probe(features, labels, features, labels)
    classifier = probe_classifier(encoder, probe)
    np.testing.assert_allclose(
        predict(classifier, images, 16, fabric), probe.predict_proba(features.numpy()), atol=1e-5
    )
