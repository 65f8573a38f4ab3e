"""Usual wrong solutions of exercises 07 to 10; see `wrong_solutions`."""

from wrong_solutions import wrong

WRONG = {
    "07_is_it_better": {
        "mcnemar": wrong(
            "mcnemar(first, second)",
            (
                """
                a, b = int(first.sum()), int(second.sum())
                heads = sum(comb(a + b, k) for k in range(min(a, b) + 1))
                return min(1.0, 2 * heads / 2 ** (a + b))
                """,
                "both agree",
            ),
            (
                """
                a, b = int((first & ~second).sum()), int((second & ~first).sum())
                return sum(comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b)
                """,
                "one end only",
            ),
            (
                """
                a, b = int((first & ~second).sum()), int((second & ~first).sum())
                return 2 * comb(a + b, a) / 2 ** (a + b)
                """,
                "*exactly*",
            ),
            (
                """
                a, b = int((first & ~second).sum()), int((second & ~first).sum())
                return 2 * sum(comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b)
                """,
                "above 1",
            ),
        ),
        "holm": wrong(
            "holm(p_values)",
            ("return np.minimum(np.array(p_values) * len(p_values), 1)", "Bonferroni"),
            (
                """
                steps = np.sort(p_values) * np.arange(len(p_values), 0, -1)
                return np.minimum(np.maximum.accumulate(steps), 1)
                """,
                "sorted",
            ),
            (
                """
                rank = np.argsort(np.argsort(p_values))
                return np.minimum(np.array(p_values) * (len(p_values) - rank), 1)
                """,
                "running maximum",
            ),
        ),
        "tiles_needed": wrong(
            "tiles_needed(gain, share)",
            (
                """
                level = norm.ppf(0.975) * np.sqrt(share)
                return ceil((level + norm.ppf(0.8) * np.sqrt(share - gain**2)) / gain)
                """,
                "Square",
            ),
            ("return ceil((norm.ppf(0.975) * np.sqrt(share) / gain) ** 2)", "z of 0.8"),
            (
                """
                level = norm.ppf(0.975) * np.sqrt(share)
                return int(((level + norm.ppf(0.8) * np.sqrt(share - gain**2)) / gain) ** 2)
                """,
                "round up",
            ),
        ),
        "over_seeds": wrong(
            "over_seeds(values, retested=0)",
            (
                """
                n, mean = len(values), np.mean(values)
                half = 1.96 * np.std(values, ddof=1) * np.sqrt(1 / n + retested)
                return mean, mean - half, mean + half
                """,
                "Student's t",
            ),
            (
                """
                n, mean = len(values), np.mean(values)
                half = student.ppf(0.975, n - 1) * np.std(values) * np.sqrt(1 / n + retested)
                return mean, mean - half, mean + half
                """,
                "ddof",
            ),
            (
                """
                n, mean = len(values), np.mean(values)
                half = student.ppf(0.975, n - 1) * np.std(values, ddof=1)
                return mean, mean - half, mean + half
                """,
                "further seed",
            ),
            (
                """
                n, mean = len(values), np.mean(values)
                half = student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
                return mean, mean - half, mean + half
                """,
                "changes nothing",
            ),
        ),
        "slide_test": wrong(
            "slide_test(first, second, slides)",
            ("return ttest_1samp(first.astype(float) - second, 0).pvalue", "counts tiles"),
            (
                """
                from scipy.stats import ttest_ind
                names = np.unique(slides)
                shares = [[r[slides == n].mean() for n in names] for r in (first, second)]
                return ttest_ind(*shares).pvalue
                """,
                "different slides",
            ),
            (
                """
                gap = first.astype(float) - second
                sums = [gap[slides == n].sum() for n in np.unique(slides)]
                return ttest_1samp(sums, 0).pvalue
                """,
                "counts twice",
            ),
        ),
    },
    "08_why_and_what_else": {
        "balanced_accuracy": wrong(
            "balanced_accuracy(confusion)",
            ("return np.trace(confusion) / confusion.sum()", "the accuracy"),
            ("return (confusion.diagonal() / confusion.sum(axis=0)).mean()", "precision"),
            (
                "return (confusion.diagonal() / np.maximum(confusion.sum(axis=1), 1)).mean()",
                "third class",
            ),
        ),
        "smote": wrong(
            "smote(rare, n, rng, k=5)",
            ("return rare[rng.integers(len(rare), size=n)]", "copies"),
            (
                """
                i, j = rng.integers(len(rare), size=(2, n))
                return rare[i] + rng.random((n, 1)) * (rare[j] - rare[i]) + 1e-9
                """,
                "not any",
            ),
            (
                """
                i = rng.integers(len(rare), size=n)
                away = np.linalg.norm(rare[i][:, None] - rare, axis=2)
                j = np.argsort(away, axis=1)[np.arange(n), rng.integers(1, k + 1, n)]
                return rare[i] + rng.random((n, rare.shape[1])) * (rare[j] - rare[i])
                """,
                "a share of its own",
            ),
            (
                """
                i = rng.integers(len(rare), size=n)
                away = np.linalg.norm(rare[i][:, None] - rare, axis=2)
                j = np.argsort(away, axis=1)[np.arange(n), rng.integers(1, k + 1, n)]
                return rare[i] + rng.normal(size=(n, 1)) * (rare[j] - rare[i])
                """,
                "beyond",
            ),
        ),
        "best_threshold": wrong(
            "best_threshold(labels, score)",
            (
                """
                t = np.unique(score)
                return t[int(np.argmax([((score >= s) == labels).mean() for s in t]))]
                """,
                "*accuracy*",
            ),
            (
                """
                t = np.unique(score)
                return t[int(np.argmax([(score[labels == 1] >= s).mean() for s in t]))]
                """,
                "recall alone",
            ),
            ("return 0.5", "usual threshold"),
        ),
        "fuse": wrong(
            "fuse(a, b)",
            ("return (np.where(a > 0, a, b) + np.where(b > 0, b, a)) / 2", "mean of the prob"),
            ("return expit(np.nansum([logit(a), logit(b)], axis=0))", "added"),
            ("return expit((logit(a) + logit(b)) / 2)", "missing record"),
            (
                """
                one, two = (np.nan_to_num(q, nan=0.5) for q in (a, b))
                return expit((logit(one) + logit(two)) / 2)
                """,
                "counts as 0.5",
            ),
        ),
        "reinhard": wrong(
            "reinhard(image, reference)",
            (
                "return image - image.mean(axis=(0, 1)) + reference.mean(axis=(0, 1))",
                "only its mean",
            ),
            (
                """
                done = (image - image.mean()) / image.std() * reference.std()
                return done + reference.mean()
                """,
                "treated alike",
            ),
            (
                """
                image -= image.mean(axis=(0, 1))
                image *= reference.std(axis=(0, 1)) / image.std(axis=(0, 1))
                image += reference.mean(axis=(0, 1))
                return image
                """,
                "has changed",
            ),
        ),
    },
    "09_explanations_on_trial": {
        "mass_minus_area": wrong(
            "mass_minus_area(heat, region)",
            ("return (heat * region).sum() / heat.sum()", "area off"),
            ("return (heat * region).sum() / heat.sum() / region.mean()", "divided by the area"),
            (
                "return (heat * region).sum() / max(heat.sum(), 1e-9) - region.mean()",
                "map of zeros",
            ),
        ),
        "rank_correlation": wrong(
            "rank_correlation(one, other)",
            ("return np.corrcoef(one.ravel(), other.ravel())[0, 1]", "ranks first"),
            (
                """
                a, b = (np.argsort(np.argsort(m.ravel(), kind="stable")) for m in (one, other))
                return np.corrcoef(a, b)[0, 1]
                """,
                "by where they stand",
            ),
            (
                """
                if np.ptp(one) == 0 or np.ptp(other) == 0:
                    return np.nan
                return np.corrcoef(rankdata(one.ravel()), rankdata(other.ravel()))[0, 1]
                """,
                "blank map",
            ),
        ),
        "deletion_curve": [
            (
                "def deletion_curve(ask, x, heat, shares):\n"
                f"    order, curve = np.argsort({order}heat.ravel()), []\n"
                "    for share in shares:\n"
                "        gone = torch.from_numpy(order[: round(share * heat.size)])\n"
                f"        filled = {copy}\n"
                f"        filled.view(3, -1)[:, gone] = {colour}\n"
                "        curve.append(ask(filled))\n"
                "    return curve",
                word,
            )
            for order, copy, colour, word in (
                ("", "x.clone()", "x.mean(dim=(1, 2))[:, None]", "*coldest*"),
                ("-", "x", "x.mean(dim=(1, 2))[:, None]", "has changed"),
                ("-", "x.clone()", "0", "black"),
                ("-", "x.clone()", "x.mean()", "grey"),
            )
        ],
        "verdict": wrong(
            "verdict(low, high, threshold, below=False)",
            (
                "return 'yes' if ((low + high) / 2 > threshold) != below else 'no'",
                "its middle above",
            ),
            (
                "return 'yes' if (high < threshold if below else low > threshold) else 'no'",
                "refuted",
            ),
            (
                """
                if low <= threshold <= high:
                    return "not shown"
                return "yes" if (low > threshold) != below else "no"
                """,
                "not known",
            ),
            (
                """
                if low > threshold:
                    return "yes"
                return "no" if high < threshold else "not shown"
                """,
                "turns the wanted side",
            ),
        ),
    },
    "10_from_tile_to_slide": {
        "find_tissue": wrong(
            "find_tissue(thumb)",
            (
                """
                grey = cv2.medianBlur(cv2.cvtColor(thumb, cv2.COLOR_RGB2GRAY), 5)
                return grey <= cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)[0]
                """,
                "black pen",
            ),
            (
                """
                saturation = cv2.cvtColor(thumb, cv2.COLOR_RGB2HSV)[..., 1]
                return saturation > cv2.threshold(saturation, 0, 255, cv2.THRESH_OTSU)[0]
                """,
                "odd pixel",
            ),
            (
                """
                saturation = cv2.medianBlur(cv2.cvtColor(thumb, cv2.COLOR_RGB2HSV)[..., 1], 5)
                return saturation <= cv2.threshold(saturation, 0, 255, cv2.THRESH_OTSU)[0]
                """,
                "Glass counts",
            ),
        ),
        "what_to_read": wrong(
            "what_to_read(field, mpp, downsamples, size)",
            ("return 0, round(field / mpp)", "Level 0 was read"),
            (
                """
                enough = [i for i, d in enumerate(downsamples) if field / (mpp * d) >= size]
                return enough[-1], round(field / mpp)
                """,
                "pixels of level 0",
            ),
            (
                """
                enough = [i for i, d in enumerate(downsamples) if field / (0.25 * d) >= size]
                return enough[-1], round(field / (0.25 * downsamples[enough[-1]]))
                """,
                "Is `mpp` used",
            ),
            (
                """
                sides = [field / (mpp * zoom) for zoom in downsamples]
                level = max([i for i, side in enumerate(sides) if side >= size], default=0)
                return level, round(sides[level])
                """,
                "ValueError",
            ),
        ),
        "stitch": wrong(
            "stitch(cells, p, shape)",
            (
                """
                total = np.zeros(shape)
                for (r, c), value in zip(cells, p):
                    total[r : r + 2, c : c + 2] += value
                return total
                """,
                "sum",
            ),
            (
                """
                heat = np.full(shape, np.nan)
                for (r, c), value in zip(cells, p):
                    heat[r : r + 2, c : c + 2] = value
                return heat
                """,
                "order of reading",
            ),
            (
                """
                total, count = np.zeros(shape), np.zeros(shape)
                for (r, c), value in zip(cells, p):
                    total[r : r + 2, c : c + 2] += value
                    count[r : r + 2, c : c + 2] += 1
                return total / np.maximum(count, 1)
                """,
                "surely HP",
            ),
        ),
        "slide_score": wrong(
            "slide_score(p, k)",
            ("return np.sort(p)[:k].mean()", "coldest"),
            ("return p[-k:].mean()", "as they came"),
            ("p.sort()\nreturn p[-k:].mean()", "a copy"),
            ("return np.sort(p)[-k:].sum() / k", "small biopsy"),
        ),
        "rests_on": wrong(
            "rests_on(p, k, threshold)",
            ("return int((p >= threshold).sum())", "before the last hot tile"),
            (
                """
                left = (slide_score(np.sort(p)[n:], k) for n in range(len(p)))
                return next((n for n, s in enumerate(left) if s < threshold), len(p))
                """,
                "*coldest*",
            ),
            (
                """
                hottest = np.sort(p)[::-1]
                left = (slide_score(hottest[n:], k) for n in range(1, len(p)))
                return next((n + 1 for n, s in enumerate(left) if s < threshold), len(p))
                """,
                "never called SSA",
            ),
        ),
    },
}
