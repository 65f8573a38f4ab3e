"""Usual wrong solutions of exercises 01 to 03: their code, and a word of the check's message."""

WRONG: dict[str, dict[str, list[tuple[str, str]]]] = {
    "01_data_exploration": {
        "pair_agreement": [
            (
                "def pair_agreement(k, readers=7):\n"
                "    return (k / readers) ** 2 + (1 - k / readers) ** 2",
                "drawn twice",
            ),
            (
                "def pair_agreement(k, readers=7):\n    return comb(k, 2) / comb(readers, 2)",
                "agree on HP",
            ),
            (
                "def pair_agreement(k, readers=7):\n    return max(k, readers - k) / readers",
                "majority",
            ),
            (
                "def pair_agreement(k, readers=7):\n    return (comb(k, 2) + comb(7 - k, 2)) / 21",
                "not always 7",
            ),
        ],
        "against_the_others": [
            (
                "def against_the_others(k, readers=7):\n    return max(k, readers - k) / readers",
                "own vote",
            ),
            (
                "def against_the_others(k, readers=7):\n"
                "    half = (readers - 1) / 2\n"
                "    return (k * (k - 1 > half) + (readers - k) * (readers - k - 1 > half))"
                " / readers",
                "tie",
            ),
            (
                "def against_the_others(k, readers=7):\n"
                "    half = (readers - 1) / 2\n"
                "    return 1.0 if k - 1 > half else 0.5 if k - 1 == half else 0.0",
                "all agree",
            ),
        ],
        "split_by_group": [
            (
                "def split_by_group(groups, share, seed):\n"
                "    order = np.random.default_rng(seed).permutation(len(groups))\n"
                "    test = np.isin(np.arange(len(groups)), order[: int(share * len(groups))])\n"
                "    return ~test, test",
                "one by one",
            ),
            (
                "def split_by_group(groups, share, seed):\n"
                "    names = np.random.default_rng(seed).permutation(np.unique(groups))\n"
                "    test = np.isin(groups, names[: int(share * len(names))])\n"
                "    return ~test, test",
                "counting slides",
            ),
            (
                "def split_by_group(groups, share, seed):\n"
                "    names, sizes = np.unique(groups, return_counts=True)\n"
                "    order = np.random.permutation(len(names))\n"
                "    fits = np.cumsum(sizes[order]) <= share * len(groups)\n"
                "    test = np.isin(groups, names[order][fits])\n"
                "    return ~test, test",
                "ignores the seed",
            ),
            (
                "def split_by_group(groups, share, seed):\n"
                "    names, sizes = np.unique(groups, return_counts=True)\n"
                "    test = np.isin(groups, names[np.cumsum(sizes) <= share * len(groups)])\n"
                "    return ~test, test",
                "not shuffled",
            ),
        ],
        "share_with_mates": [
            (
                "def share_with_mates(groups, train, test):\n"
                "    return np.isin(groups[train], groups[test]).mean()",
                "reverse",
            ),
            (
                "def share_with_mates(groups, train, test):\n"
                "    return np.isin(groups[test], groups[train]).sum()",
                "divide",
            ),
            (
                "def share_with_mates(groups, train, test):\n"
                "    return np.isin(test, train).mean()",
                "slide a",
            ),
        ],
        "nearest_colour": [
            (
                "def nearest_colour(colour, labels, train, test):\n"
                "    x = (colour - colour.mean(axis=0)) / colour.std(axis=0)\n"
                "    d = ((x[test][:, None] - x[train][None]) ** 2).sum(axis=2)\n"
                "    said = labels[train][d.argmin(axis=1)]\n"
                "    return balanced_accuracy_score(labels[test], said)",
                "must not take part",
            ),
            (
                "def nearest_colour(colour, labels, train, test):\n"
                "    x = (colour - colour[train].mean(axis=0)) / colour[train].std(axis=0)\n"
                "    d = ((x[test][:, None] - x[train][None]) ** 2).sum(axis=2)\n"
                "    return (labels[train][d.argmin(axis=1)] == labels[test]).mean()",
                "plain accuracy",
            ),
            (
                "def nearest_colour(colour, labels, train, test):\n"
                "    d = ((colour[test][:, None] - colour[train][None]) ** 2).sum(axis=2)\n"
                "    said = labels[train][d.argmin(axis=1)]\n"
                "    return balanced_accuracy_score(labels[test], said)",
                "not standardised",
            ),
            (
                "def nearest_colour(colour, labels, train, test):\n"
                "    x = (colour - colour[train].mean(axis=0)) / colour[train].std(axis=0)\n"
                "    said = KNeighborsClassifier(1).fit(x, labels).predict(x[test])\n"
                "    return balanced_accuracy_score(labels[test], said)",
                "found itself",
            ),
        ],
        "precision_at": [
            (
                "def precision_at(recall, specificity, prevalence):\n"
                "    right, wrong = recall * prevalence, specificity * (1 - prevalence)\n"
                "    return right / (right + wrong)",
                "1 - specificity",
            ),
            (
                "def precision_at(recall, specificity, prevalence):\n"
                "    return recall / (recall + 1 - specificity)",
                "prevalence is left out",
            ),
            (
                "def precision_at(recall, specificity, prevalence):\n"
                "    return recall * prevalence / (recall * prevalence + 1 - specificity)",
                "not of all tiles",
            ),
        ],
    },
}
