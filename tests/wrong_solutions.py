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
    "03_contrastive_pretraining": {
        "chance_loss": wrong(
            "chance_loss(n)",
            ("return math.log(2 * n)", "anchor itself"),
            ("return math.log(n)", "candidates are views"),
            ("return math.log(2 * n - 2)", "negatives only"),
        ),
        "nt_xent": wrong(
            "nt_xent(z1, z2, temperature)",
            (
                """
                z = F.normalize(torch.cat([z1, z2]), dim=1)
                return F.cross_entropy(z @ z.T / temperature, torch.arange(len(z)).roll(len(z1)))
                """,
                "diagonal",
            ),
            (
                """
                a, b = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
                return F.cross_entropy(a @ b.T / temperature, torch.arange(len(a)))
                """,
                "second views only",
            ),
            (
                """
                z = F.normalize(torch.cat([z1, z2]), dim=1)
                scores = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
                return F.cross_entropy(scores, torch.arange(len(z)).roll(1))
                """,
                "N rows below",
            ),
            (
                """
                z = torch.cat([z1, z2])
                scores = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
                return F.cross_entropy(scores, torch.arange(len(z)).roll(len(z1)))
                """,
                "length one",
            ),
            (
                """
                z = F.normalize(torch.cat([z1, z2]), dim=1)
                scores = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
                partner = torch.arange(len(z)).roll(len(z1))
                return F.cross_entropy(scores[: len(z1)], partner[: len(z1)])
                """,
                "anchors too",
            ),
            (
                """
                z = F.normalize(torch.cat([z1, z2]), dim=1)
                scores = torch.exp(z @ z.T / temperature).fill_diagonal_(0)
                partner = torch.arange(len(z)).roll(len(z1))
                chosen = scores[torch.arange(len(z)), partner]
                return -torch.log(chosen / scores.sum(dim=1)).mean()
                """,
                "float32",
            ),
            (
                """
                z = F.normalize(torch.cat([z1, z2]), dim=1).detach()
                scores = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
                return F.cross_entropy(scores, torch.arange(len(z)).roll(len(z1)))
                """,
                "no gradient",
            ),
        ),
        "push_on_nearest": wrong(
            "push_on_nearest(cosines, temperature)",
            (
                """
                push = np.exp(cosines / temperature)
                return push.min() / push.sum()
                """,
                "farthest",
            ),
            (
                """
                push = np.exp(cosines * temperature)
                return push.max() / push.sum()
                """,
                "multiplied",
            ),
            (
                """
                push = np.exp(cosines)
                return push.max() / push.sum()
                """,
                "no effect",
            ),
        ),
        "training_step": wrong(
            "training_step(network, optimizer, v1, v2, temperature)",
            (
                """
                loss = nt_xent(*network(torch.cat([v1, v2])).chunk(2), temperature)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                return loss
                """,
                "loss.item()",
            ),
            (
                """
                loss = nt_xent(*network(torch.cat([v1, v2])).chunk(2), temperature)
                optimizer.zero_grad()
                optimizer.step()
                loss.backward()
                return loss.item()
                """,
                "comes before",
            ),
            (
                """
                loss = nt_xent(*network[0](torch.cat([v1, v2])).chunk(2), temperature)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                return loss.item()
                """,
                "head",
            ),
            (
                """
                loss = nt_xent(network(v1), network(v2), temperature)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                return loss.item()
                """,
                "two calls",
            ),
            (
                """
                loss = nt_xent(*network(torch.cat([v1, v2])).chunk(2), temperature)
                loss.backward()
                optimizer.step()
                return loss.item()
                """,
                "adds",
            ),
        ),
        "effective_rank": wrong(
            "effective_rank(z)",
            (
                """
                sigma = np.linalg.svd(z, compute_uv=False)
                p = sigma[sigma > 0] / sigma.sum()
                return np.exp(-(p * np.log(p)).sum())
                """,
                "not subtracted",
            ),
            (
                """
                sigma = np.linalg.svd(z - z.mean(axis=0), compute_uv=False) ** 2
                p = sigma[sigma > 0] / sigma.sum()
                return np.exp(-(p * np.log(p)).sum())
                """,
                "squared",
            ),
            (
                """
                sigma = np.linalg.svd(z - z.mean(axis=0), compute_uv=False)
                p = sigma[sigma > 0] / sigma.sum()
                return -(p * np.log(p)).sum()
                """,
                "exponential",
            ),
            (
                """
                sigma = np.linalg.svd(z - z.mean(axis=0), compute_uv=False)
                p = sigma / sigma.sum()
                with np.errstate(divide="ignore", invalid="ignore"):
                    return np.exp(-(p * np.log(p)).sum())
                """,
                "NaN",
            ),
        ),
        "vote": wrong(
            "vote(features, labels, groups, k)",
            (
                """
                unit = features / np.linalg.norm(features, axis=1, keepdims=True)
                cosines = unit @ unit.T - 3 * np.eye(len(unit))
                nearest = np.argsort(-cosines, axis=1)[:, :k]
                return (labels[nearest].mean(axis=1) > 0.5).astype(int)
                """,
                "slide-mates have voted",
            ),
            (
                """
                unit = features / np.linalg.norm(features, axis=1, keepdims=True)
                cosines = np.where(groups[:, None] == groups, np.inf, unit @ unit.T)
                nearest = np.argsort(cosines, axis=1)[:, :k]
                return (labels[nearest].mean(axis=1) > 0.5).astype(int)
                """,
                "farthest",
            ),
            (
                """
                products = np.where(groups[:, None] == groups, -np.inf, features @ features.T)
                nearest = np.argsort(-products, axis=1)[:, :k]
                return (labels[nearest].mean(axis=1) > 0.5).astype(int)
                """,
                "won the votes",
            ),
            (
                """
                distance = ((features[:, None] - features[None]) ** 2).sum(axis=2)
                distance[groups[:, None] == groups] = np.inf
                nearest = np.argsort(distance, axis=1)[:, :k]
                return (labels[nearest].mean(axis=1) > 0.5).astype(int)
                """,
                "Euclidean",
            ),
        ),
    },
}
