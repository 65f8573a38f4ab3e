"""What all studies share: rows measured one by one, each on disk before the next begins.

A study is a plan, the rows there shall be, and a function that measures one. A row names its seed,
its parameters, its result, its machine and the commit; rows that are there are not measured again,
so a study can be stopped and gone on with. A seed is another cohort, another split and another
initialisation: on drawn tissue another tissue, on real tiles another split by case.
"""

import argparse
import hashlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.pipeline import Pipeline
from torch import Tensor, nn

from crc_helpers import claims
from crc_helpers.claims import Answer, Experiment, Recipe, trained_once
from crc_helpers.data import Tiles, load_tiles
from crc_helpers.fine_tuning import linear_probe
from crc_helpers.models import Encoder, contrastive_model
from crc_helpers.pretraining import Contrast, Training, embed, pretrain
from crc_helpers.runs import ROOT, RunError, device_name, file_hash, locked, printable, save_table
from crc_helpers.sources.base import DataError
from crc_helpers.sources.store import content_hash
from crc_helpers.tissue.parameters import KINDS

Objective = Callable[[nn.Sequential, float, np.ndarray], nn.Module]  # of model, temperature, labels


@dataclass(eq=False)
class Trainer(Experiment):
    """An experiment with pre-training and probes, which lessons do elsewhere and studies here."""

    def pretrained(
        self,
        recipe: Recipe | None = None,
        index: np.ndarray | None = None,
        objective: Objective | None = None,
    ) -> Encoder:
        """Return the encoder after pre-training, from the cache if another row began with it.

        index: tiles to learn from without labels; those for training if not given. objective: makes
        another loss than NT-Xent.
        """
        r, index = recipe or self.recipe, self.parts.pretraining if index is None else index
        images, labels = self.tiles.images.pick(index), self.labels(index)
        model = contrastive_model(r.backbone, r.head, self.seed)
        training = Training(
            r.size, r.pretrain_epochs, r.pretrain_batch, r.pretrain_lr, r.optimizer, self.seed
        )

        def train() -> None:
            loss = objective(model, r.temperature, labels) if objective else Contrast(r.temperature)
            pretrain(model, images, r.views, self.fabric, training, loss)

        settings = {k: v for k, v in vars(r).items() if k not in ("steps", "batch", "rates")}
        if objective:  # one of them learns from labels
            settings |= {"objective": objective.__name__, "labels": labels.tolist()}
        code = [file_hash(Path(__file__).with_name(f"{n}.py")) for n in ("common", "objectives")]
        settings |= {"tiles": content_hash(images), "seed": self.seed, "code": code}
        return trained_once(model[0], train, **settings).to(self.fabric.device)

    def features(self, encoder: nn.Module, index: np.ndarray) -> Tensor:
        """Return an encoder's features of some tiles, float32 (N, D)."""
        return embed(encoder, self.tiles.images[index], self.recipe.size, self.fabric)

    def fit_probe(self, encoder: Encoder, labelled: np.ndarray | None = None) -> Pipeline:
        """Fit a linear probe on some of the training tiles, its strength chosen on validation."""
        train, val = self.parts.train if labelled is None else labelled, self.parts.val
        features = [self.features(encoder, part) for part in (train, val)]
        return linear_probe(features[0], self.labels(train), features[1], self.labels(val))

    def probe(self, encoder: Encoder, labelled: np.ndarray | None = None) -> Answer:
        """Return a linear probe as a function from tiles to class probabilities."""
        fitted = self.fit_probe(encoder, labelled)
        return lambda index: fitted.predict_proba(self.features(encoder, index).numpy())


@lru_cache(maxsize=3)
def features_after(t: Trainer, epochs: int) -> Tensor:
    """Return the features of all tiles, float32 (N, D), after some epochs of pre-training."""
    longer = replace(t.recipe, pretrain_epochs=epochs)
    encoder = t.pretrained(longer) if epochs else t.random_encoder()
    return t.features(encoder, np.arange(len(t.tiles)))


def rows_of(seeds: int, **parameters: Iterable) -> list[dict]:
    """Return a plan of every combination of parameters, seed by seed."""
    rows = product(range(seeds), *parameters.values())
    return [dict(zip(("seed", *parameters), row, strict=True)) for row in rows]


@dataclass(frozen=True)
class Study:
    """What a script of this folder measures: a name, for the tables NAME_DATA.csv, and how."""

    name: str
    plan: Callable[[int], Iterable[dict]]  # of the number of seeds
    row: Callable[..., dict]  # of an experiment and the row's parameters
    recipe: Recipe = claims.USUAL
    all_classes: bool = False  # four kinds of drawn tissue, or all classes of real tiles
    drawn_only: bool = False  # real tiles cannot answer its question
    first_seed: int = claims.FIRST_SEED  # of the drawn cohorts


@lru_cache(maxsize=1)
def experiment(study: Study, seed: int, recipe: Recipe, data: str, root: str | None) -> Trainer:
    """Return the experiment of a seed, made once for the rows that follow each other."""
    every = KINDS if data == "synthetic" else "all"
    classes = every if study.all_classes else None
    first = study.first_seed
    return Trainer.of_seed(seed, recipe, data, first, root=root, classes=classes)


def measure(
    study: Study,
    data: str = "synthetic",
    root: str | None = None,
    seeds: int = 5,
    recipe: Recipe | None = None,
    folder: Path = claims.STUDIES,
) -> pd.DataFrame:
    """Measure the rows that are missing of a study's table, and return the table.

    Raises RunError for data that the study cannot use, or a table of another recipe or of others'
    tiles.
    """
    if study.drawn_only and data != "synthetic":
        raise RunError(f"study {study.name!r} is about drawn tissue: leave out --data {data}")
    recipe, file = recipe or study.recipe, folder / f"{study.name}_{data}.csv"
    usual = vars(study.recipe)
    changed = ", ".join(f"{k} {v}" for k, v in vars(recipe).items() if v != usual[k]) or "nothing"
    tiles = "drawn" if data == "synthetic" else fingerprint(load_tiles(data, root))
    facts = {"changed": changed, "device": device_name(), "commit": commit(), "tiles": tiles}
    size = {k: getattr(recipe, k) for k in ("n_tiles", "size", "backbone", "steps")}
    with locked(file):
        rows = claims.read_rows(file).to_dict("records") if file.is_file() else []
        for fact in ("changed", "tiles"):
            if others := {row.get(fact) for row in rows} - {facts[fact]}:
                raise RunError(
                    f"{file} holds rows of another experiment ({fact}: {others.pop()}; now:"
                    f" {facts[fact]}): give another folder with --out"
                )
        for key in study.plan(seeds):
            if any(all(str(row.get(k)) == str(v) for k, v in key.items()) for row in rows):
                continue
            start = time.perf_counter()
            t = experiment(study, key["seed"], recipe, data, root)
            result = study.row(t, **{k: v for k, v in key.items() if k != "seed"})
            row = key | size | {"n_tiles": len(t.tiles)} | result
            rows.append(row | {"seconds": round(time.perf_counter() - start, 1)} | facts)
            save_table(file, rows)
            words = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            print(*words, sep=", ", flush=True)
    return pd.DataFrame(rows)


def fingerprint(tiles: Tiles) -> str:
    """Return a short hash of names and labels: the same wherever the files lie."""
    text = "\n".join(tiles.ids) + tiles.labels.astype(int).tobytes().hex()
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def commit() -> str:
    """Return the commit, with "-dirty" where tracked files other than tables differ from it."""
    git = partial(subprocess.run, cwd=ROOT, text=True, capture_output=True)
    try:
        name = git(["git", "describe", "--always"]).stdout.strip()
        changed = git(["git", "diff", "HEAD", "--quiet", "--", ":!studies/*.csv"]).returncode
    except FileNotFoundError:  # git is not installed
        name = ""
    return name + "-dirty" * changed if name else "no repository"


def main(study: Study, argv: Sequence[str] | None = None) -> int:
    """Measure what is missing of a study; return the exit status, 2 for what the user can mend."""
    look = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=study.row.__doc__, formatter_class=look)
    names = ("synthetic", "ebhi", "mhist", "folder")
    parser.add_argument("--data", choices=names, default="synthetic", help="the tiles")
    parser.add_argument("--data-root", metavar="DIR", type=Path, help="folder of real tiles")
    parser.add_argument("--seeds", type=int, default=5, help="cohorts, splits, initialisations")
    parser.add_argument("--out", type=Path, default=claims.STUDIES, help="folder of the table")
    for name, value in vars(study.recipe).items():
        if name != "views":
            kind, many = (type(value[0]), "+") if isinstance(value, tuple) else (type(value), None)
            parser.add_argument(f"--{name}", type=kind, nargs=many, default=value, help="size")
    options = vars(parser.parse_args(argv))
    data, root, seeds, out = (options.pop(k) for k in ("data", "data_root", "seeds", "out"))
    try:
        if seeds < 1:
            raise RunError(f"--seeds {seeds}: give at least 1")
        recipe = replace(study.recipe, **options | {"rates": tuple(options["rates"])})
        root = str(root.expanduser().resolve()) if root else None
        rows = measure(study, data, root, seeds, recipe, out.expanduser())
    except (DataError, RunError, ValueError, FloatingPointError) as error:
        print(f"{study.name}: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{len(rows)} rows of {study.name}_{data}.csv in {out}")
    return 0
