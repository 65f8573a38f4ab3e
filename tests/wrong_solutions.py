"""Usual wrong solutions of exercises 01 to 03: their code, and a word of the check's message."""

from textwrap import dedent, indent


def wrong(header: str, *bodies: tuple[str, str]) -> list[tuple[str, str]]:
    """Return the code of a function with each of these bodies, and the word that it must raise."""
    return [(f"def {header}:\n{indent(dedent(body), '    ')}", word) for body, word in bodies]


WRONG = {
    "01_data_exploration": {
        "pair_agreement": wrong(
            "pair_agreement(k, readers=7)",
            ("return (k / readers) ** 2 + (1 - k / readers) ** 2", "drawn twice"),
            ("return comb(k, 2) / comb(readers, 2)", "agree on HP"),
            ("return max(k, readers - k) / readers", "majority"),
            ("return (comb(k, 2) + comb(7 - k, 2)) / 21", "not always 7"),
        ),
        "against_the_others": wrong(
            "against_the_others(k, readers=7)",
            ("return max(k, readers - k) / readers", "own vote"),
            (
                """
                half = (readers - 1) / 2
                return (k * (k - 1 > half) + (readers - k) * (readers - k - 1 > half)) / readers
                """,
                "tie",
            ),
            (
                """
                half = (readers - 1) / 2
                return 1.0 if k - 1 > half else 0.5 if k - 1 == half else 0.0
                """,
                "all agree",
            ),
        ),
        "split_by_group": wrong(
            "split_by_group(groups, share, seed)",
            (
                """
                order = np.random.default_rng(seed).permutation(len(groups))
                test = np.isin(np.arange(len(groups)), order[: int(share * len(groups))])
                return ~test, test
                """,
                "one by one",
            ),
            (
                """
                names = np.random.default_rng(seed).permutation(np.unique(groups))
                test = np.isin(groups, names[: int(share * len(names))])
                return ~test, test
                """,
                "counting slides",
            ),
            (
                """
                names, sizes = np.unique(groups, return_counts=True)
                order = np.random.permutation(len(names))
                fits = np.cumsum(sizes[order]) <= share * len(groups)
                test = np.isin(groups, names[order][fits])
                return ~test, test
                """,
                "ignores the seed",
            ),
            (
                """
                names, sizes = np.unique(groups, return_counts=True)
                test = np.isin(groups, names[np.cumsum(sizes) <= share * len(groups)])
                return ~test, test
                """,
                "not shuffled",
            ),
        ),
        "share_with_mates": wrong(
            "share_with_mates(groups, train, test)",
            ("return np.isin(groups[train], groups[test]).mean()", "reverse"),
            ("return np.isin(groups[test], groups[train]).sum()", "divide"),
            ("return np.isin(test, train).mean()", "slide a"),
        ),
        "nearest_colour": wrong(
            "nearest_colour(colour, labels, train, test)",
            (
                """
                x = (colour - colour.mean(axis=0)) / colour.std(axis=0)
                said = KNeighborsClassifier(1).fit(x[train], labels[train]).predict(x[test])
                return balanced_accuracy_score(labels[test], said)
                """,
                "must not take part",
            ),
            (
                """
                x = (colour - colour[train].mean(axis=0)) / colour[train].std(axis=0)
                said = KNeighborsClassifier(1).fit(x[train], labels[train]).predict(x[test])
                return (said == labels[test]).mean()
                """,
                "plain accuracy",
            ),
            (
                """
                model = KNeighborsClassifier(1).fit(colour[train], labels[train])
                return balanced_accuracy_score(labels[test], model.predict(colour[test]))
                """,
                "not standardised",
            ),
            (
                """
                x = (colour - colour[train].mean(axis=0)) / colour[train].std(axis=0)
                said = KNeighborsClassifier(1).fit(x, labels).predict(x[test])
                return balanced_accuracy_score(labels[test], said)
                """,
                "found itself",
            ),
        ),
        "precision_at": wrong(
            "precision_at(recall, specificity, prevalence)",
            (
                """
                right, wrong = recall * prevalence, specificity * (1 - prevalence)
                return right / (right + wrong)
                """,
                "1 - specificity",
            ),
            ("return recall / (recall + 1 - specificity)", "prevalence is left out"),
            (
                "return recall * prevalence / (recall * prevalence + 1 - specificity)",
                "not of all tiles",
            ),
        ),
    },
    "02_augmentation_gallery": {
        "dye_amounts": wrong(
            "dye_amounts(image, dyes)",
            (
                """
                density = np.log(np.clip(image, 1 / 255, 1))
                return np.einsum("khw,kj->jhw", density, np.linalg.inv(dyes))
                """,
                "wrong sign",
            ),
            (
                """
                density = -np.log10(np.clip(image, 1 / 255, 1))
                return np.einsum("khw,kj->jhw", density, np.linalg.inv(dyes))
                """,
                "log10",
            ),
            (
                """
                density = -np.log(np.clip(image, 1 / 255, 1))
                return np.einsum("khw,kj->jhw", density, dyes)
                """,
                "the way back is its inverse",
            ),
            (
                """
                density = -np.log(np.clip(image, 1 / 255, 1))
                return np.einsum("khw,jk->jhw", density, dyes)
                """,
                "resembles",
            ),
            (
                """
                density = -np.log(np.clip(image, 1 / 255, 1))
                return np.einsum("khw,jk->jhw", density, np.linalg.inv(dyes))
                """,
                "transposed",
            ),
            (
                """
                with np.errstate(divide="ignore", invalid="ignore"):
                    return np.einsum("khw,kj->jhw", -np.log(image), np.linalg.inv(dyes))
                """,
                "black",
            ),
        ),
        "restain": wrong(
            "restain(image, dyes, factors)",
            ("return np.clip(image * np.reshape(factors, (3, 1, 1)), 0, 1)", "white"),
            ("return np.clip(image ** np.reshape(factors, (3, 1, 1)), 0, 1)", "unmix"),
            (
                """
                c = dye_amounts(image, dyes) + np.reshape(factors, (3, 1, 1)) - 1
                return np.clip(np.exp(-np.einsum("jhw,jk->khw", c, dyes)), 0, 1)
                """,
                "white",
            ),
            (
                """
                c = dye_amounts(image, dyes) * np.reshape(factors, (3, 1, 1))
                return np.clip(np.einsum("jhw,jk->khw", c, dyes), 0, 1)
                """,
                "undo",
            ),
        ),
        "share_shown": wrong(
            "share_shown(region, top, left, side)",
            ("return region[top:top + side, left:left + side].mean()", "whole region"),
            (
                """
                part = region[top:top + side, left:left + side]
                return part.sum() / (region.sum() + part.size - part.sum())
                """,
                "whole region",
            ),
            (
                "return region[left:left + side, top:top + side].sum() / region.sum()",
                "rows come first",
            ),
        ),
        "crops_without_evidence": wrong(
            "crops_without_evidence(crypts, side)",
            (
                """
                at = range(0, 224 - side + 1, 8)
                return np.mean([any(share_shown(c, i, j, side) < 0.75 for c in crypts)
                                for i in at for j in at])
                """,
                "one decisive crypt is enough",
            ),
            (
                """
                at, crypt = range(0, 224 - side + 1, 8), np.any(crypts, axis=0)
                return np.mean([share_shown(crypt, i, j, side) < 0.75 for i in at for j in at])
                """,
                "one decisive crypt is enough",
            ),
            (
                """
                at = range(0, max(224 - side, 1), 8)
                return np.mean([all(share_shown(c, i, j, side) < 0.75 for c in crypts)
                                for i in at for j in at])
                """,
                "last place",
            ),
            (
                """
                at = range(0, 224 - side + 1, 8)
                return np.mean([all(share_shown(c, i, j, side) <= 0.75 for c in crypts)
                                for i in at for j in at])
                """,
                "at least",
            ),
        ),
        "two_views": wrong(
            "two_views(images, views, size, generator)",
            (
                """
                p = augmentation.draw_parameters(len(images), views, generator)
                return augmentation.apply(images, p, size), augmentation.apply(images, p, size)
                """,
                "one draw was used twice",
            ),
            (
                """
                pair = [augmentation.draw_parameters(1, views, generator) for _ in range(2)]
                return tuple(torch.cat([augmentation.apply(x[None], p, size) for x in images])
                             for p in pair)
                """,
                "one draw was used for all",
            ),
            (
                """
                generator = torch.Generator().manual_seed(0)
                pair = [augmentation.draw_parameters(len(images), views, generator)
                        for _ in range(2)]
                return tuple(augmentation.apply(images, p, size) for p in pair)
                """,
                "seeded anew",
            ),
            (
                """
                p, q = (augmentation.draw_parameters(len(images), views, generator)
                        for _ in range(2))
                first = augmentation.apply(images, p, size)
                return first, augmentation.apply(first, q, size)
                """,
                "crop of a crop",
            ),
            (
                """
                p, q = (augmentation.draw_parameters(len(images), views, generator)
                        for _ in range(2))
                return augmentation.apply(images, p, size), augmentation.apply(images, q, size)[
                    torch.randperm(len(images), generator=generator)
                ]
                """,
                "row i",
            ),
        ),
        "picked_by_colour": wrong(
            "picked_by_colour(c1, c2)",
            (
                """
                scale = np.concatenate([c1, c2]).std(axis=0)
                d = (((c1[:, None] - c2[None]) / scale) ** 2).sum(axis=2)
                return (d.argmax(axis=1) == np.arange(len(c1))).mean()
                """,
                "farthest",
            ),
            (
                """
                scale = np.concatenate([c1, c2]).std(axis=0)
                d = (((c1[:, None] - c2[None]) / scale) ** 2).sum(axis=2)
                return (d.argmin(axis=0) == np.arange(len(c1))).mean()
                """,
                "each row",
            ),
            (
                """
                d = ((c1[:, None] - c2[None]) ** 2).sum(axis=2)
                return (d.argmin(axis=1) == np.arange(len(c1))).mean()
                """,
                "standard deviation",
            ),
        ),
    },
}
