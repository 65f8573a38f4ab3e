"""Usual wrong solutions of exercises 04 to 06; see `wrong_solutions`."""

WRONG: dict[str, dict[str, list[tuple[str, str]]]] = {
    "04_fine_tuning": {
        "frozen_features": [
            (
                "def frozen_features(encoder, images):\n    return encoder(images)",
                "training mode",
            ),
            (
                "def frozen_features(encoder, images):\n"
                "    for weight in encoder.parameters():\n"
                "        weight.requires_grad = False\n"
                "    return encoder(images)",
                "all weights are frozen",
            ),
            (
                "def frozen_features(encoder, images):\n"
                "    encoder.eval()\n"
                "    return encoder(images)",
                "record a gradient",
            ),
        ],
        "probe": [
            (
                "def probe(train, train_labels, asked):\n"
                "    fit = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))\n"
                "    return fit.fit(train, train_labels).predict(asked)",
                "gives classes",
            ),
            (
                "def probe(train, train_labels, asked):\n"
                "    fit = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))\n"
                "    return fit.fit(train, train_labels).predict_proba(asked)[:, 0]",
                "column 0",
            ),
            (
                "def probe(train, train_labels, asked):\n"
                "    fit = LogisticRegression(C=0.01)\n"
                "    fit.fit(StandardScaler().fit_transform(train), train_labels)\n"
                "    return fit.predict_proba(StandardScaler().fit_transform(asked))[:, 1]",
                "their own mean",
            ),
            (
                "def probe(train, train_labels, asked):\n"
                "    fit = LogisticRegression(C=0.01, max_iter=1000).fit(train, train_labels)\n"
                "    return fit.predict_proba(asked)[:, 1]",
                "not standardised",
            ),
        ],
        "choose": [
            (
                "def choose(log):\n"
                "    row = log.loc[log['loss'].idxmin()]\n"
                "    return row['lr'], row['epoch']",
                "training loss has chosen",
            ),
            (
                "def choose(log):\n"
                "    row = log.loc[log['test_auc'].idxmax()]\n"
                "    return row['lr'], row['epoch']",
                "test part has chosen",
            ),
            (
                "def choose(log):\n"
                "    best = log['val_loss'].idxmin()\n"
                "    return log['lr'][best], best",
                "number of the row",
            ),
        ],
        "balanced_accuracy": [
            (
                "def balanced_accuracy(labels, predicted):\n"
                "    return (labels == predicted).mean()",
                "over all tiles",
            ),
            (
                "def balanced_accuracy(labels, predicted):\n"
                "    called = np.unique(predicted)\n"
                "    return np.mean([(labels[predicted == c] == c).mean() for c in called])",
                "mean precision",
            ),
            (
                "def balanced_accuracy(labels, predicted):\n"
                "    both = np.union1d(labels, predicted)\n"
                "    recall = [(predicted[labels == c] == c).sum() / max(1, (labels == c).sum())"
                " for c in both]\n"
                "    return np.mean(recall)",
                "absent class",
            ),
        ],
        "class_weights": [
            (
                "def class_weights(labels, classes):\n"
                "    return np.bincount(labels, minlength=classes) / len(labels)",
                "frequencies",
            ),
            (
                "def class_weights(labels, classes):\n"
                "    return 1 - np.bincount(labels, minlength=classes) / len(labels)",
                "two classes only",
            ),
            (
                "def class_weights(labels, classes):\n"
                "    return 1 / np.bincount(labels, minlength=classes)",
                "learning rate",
            ),
        ],
        "epochs_for": [
            (
                "def epochs_for(steps, tiles, batch):\n    return math.ceil(steps * batch / tiles)",
                "do not fill a batch",
            ),
            (
                "def epochs_for(steps, tiles, batch):\n    return steps // (tiles // batch)",
                "round up",
            ),
            (
                "def epochs_for(steps, tiles, batch):\n"
                "    return math.ceil(steps / math.ceil(tiles / batch))",
                "make no step",
            ),
            (
                "def epochs_for(steps, tiles, batch):\n"
                "    epochs = 0\n"
                "    while epochs * (tiles // batch) <= steps:\n"
                "        epochs += 1\n"
                "    return epochs",
                "may be added",
            ),
        ],
    },
    "05_evaluation": {
        "wilson": [
            (
                "def wilson(right, n, z=1.96):\n"
                "    share = right / n\n"
                "    half = z * np.sqrt(share * (1 - share) / n)\n"
                "    return share - half, share + half",
                "Wald",
            ),
            (
                "def wilson(right, n, z=1.96):\n"
                "    share = right / n\n"
                "    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n))\n"
                "    middle, scale = share + z**2 / (2 * n), 1 + z**2 / n\n"
                "    return (middle - half) / scale, (middle + half) / scale",
                "squared",
            ),
            (
                "def wilson(right, n, z=1.96):\n"
                "    share = right / n\n"
                "    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))\n"
                "    return share + z**2 / (2 * n) - half, share + z**2 / (2 * n) + half",
                "no share is above 1",
            ),
        ],
        "auc_by_pairs": [
            (
                "def auc_by_pairs(positive, negative):\n"
                "    return (positive[:, None] > negative[None, :]).mean()",
                "tie",
            ),
            (
                "def auc_by_pairs(positive, negative):\n"
                "    pairs = list(zip(positive, negative))\n"
                "    return np.mean([1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs])",
                "tile 1 only",
            ),
            (
                "def auc_by_pairs(positive, negative):\n"
                "    d = negative[:, None] - positive[None, :]\n"
                "    return ((d > 0) + 0.5 * (d == 0)).mean()",
                "turned round",
            ),
        ],
        "draw_slides": [
            (
                "def draw_slides(slides, rng):\n"
                "    return rng.integers(len(slides), size=len(slides))",
                "you drew tiles",
            ),
            (
                "def draw_slides(slides, rng):\n"
                "    names = np.unique(slides)\n"
                "    drawn = rng.choice(names, len(names))\n"
                "    return np.flatnonzero(np.isin(slides, drawn))",
                "repeats are lost",
            ),
            (
                "def draw_slides(slides, rng):\n"
                "    names = rng.permutation(np.unique(slides))\n"
                "    return np.concatenate([np.flatnonzero(slides == n) for n in names])",
                "without replacement",
            ),
        ],
        "paired_interval": [
            (
                "def paired_interval(a, b, draw, times=1000):\n"
                "    gaps = [a[draw()].mean() - b[draw()].mean() for _ in range(times)]\n"
                "    return np.quantile(gaps, [0.025, 0.975])",
                "a draw of its own",
            ),
            (
                "def paired_interval(a, b, draw, times=1000):\n"
                "    draws = [draw() for _ in range(times)]\n"
                "    of_a, of_b = ([v[k].mean() for k in draws] for v in (a, b))\n"
                "    ends = [0.025, 0.975]\n"
                "    return np.quantile(of_a, ends) - np.quantile(of_b, ends)",
                "first classifier's interval",
            ),
            (
                "def paired_interval(a, b, draw, times=1000):\n"
                "    draws = [draw() for _ in range(times)]\n"
                "    return np.quantile([(a[k] - b[k]).mean() for k in draws], [0.05, 0.95])",
                "90 %",
            ),
        ],
        "threshold_for_recall": [
            (
                "def threshold_for_recall(labels, score, recall):\n"
                "    return np.quantile(score[labels == 1], 1 - recall)",
                "interpolate",
            ),
            (
                "def threshold_for_recall(labels, score, recall):\n"
                "    for t in np.sort(score[labels == 1]):\n"
                "        if (score[labels == 1] >= t).mean() >= recall:\n"
                "            return t",
                "highest one",
            ),
            (
                "def threshold_for_recall(labels, score, recall):\n"
                "    positive = np.sort(score[labels == 1])[::-1]\n"
                "    return positive[min(int(recall * len(positive)), len(positive) - 1)]",
                "exactly half",
            ),
            (
                "def threshold_for_recall(labels, score, recall):\n"
                "    for t in np.sort(score)[::-1]:\n"
                "        if (score >= t).mean() >= recall:\n"
                "            return t",
                "label 1",
            ),
        ],
        "calibration_error": [
            (
                "def calibration_error(positive, score, bins=10):\n"
                "    return abs(score - positive).mean()",
                "its own label",
            ),
            (
                "def calibration_error(positive, score, bins=10):\n"
                "    b = np.minimum((score * bins).astype(int), bins - 1)\n"
                "    gaps = [abs((score - positive)[b == k].mean()) for k in np.unique(b)]\n"
                "    return np.mean(gaps)",
                "weight each gap",
            ),
            (
                "def calibration_error(positive, score, bins=10):\n"
                "    total = 0\n"
                "    for low in np.arange(bins) / bins:\n"
                "        here = (score >= low) & (score < low + 1 / bins)\n"
                "        total += abs((score - positive)[here].sum())\n"
                "    return total / len(score)",
                "last bin",
            ),
            (
                "def calibration_error(positive, score, bins=10):\n"
                "    return abs((score - positive).sum()) / len(score)",
                "no sign",
            ),
        ],
        "best_temperature": [
            (
                "def best_temperature(labels, p, choices):\n"
                "    scaled = [p**t / (p**t).sum(axis=1, keepdims=True) for t in choices]\n"
                "    losses = [-np.log(s[np.arange(len(labels)), labels]).mean() for s in scaled]\n"
                "    return choices[int(np.argmin(losses))]",
                "power 1/T",
            ),
            (
                "def best_temperature(labels, p, choices):\n"
                "    of_truth = p[np.arange(len(labels)), labels]\n"
                "    losses = [-np.log(of_truth ** (1 / t)).mean() for t in choices]\n"
                "    return choices[int(np.argmin(losses))]",
                "dividing by their sum",
            ),
            (
                "def best_temperature(labels, p, choices):\n"
                "    right = [((p ** (1 / t)).argmax(axis=1) == labels).mean() for t in choices]\n"
                "    return choices[int(np.argmax(right))]",
                "accurac",
            ),
        ],
    },
    "06_grad_cam": {
        "channel_weights": [
            (
                "def channel_weights(gradient):\n    return gradient.mean(dim=1)",
                "average over the places",
            ),
            (
                "def channel_weights(gradient):\n    return gradient.sum(dim=(2, 3))",
                "sum over places",
            ),
            (
                "def channel_weights(gradient):\n    return gradient.abs().mean(dim=(2, 3))",
                "its sign",
            ),
        ],
        "heat_map": [
            (
                "def heat_map(weights, activations):\n"
                "    return (weights[:, :, None, None] * activations).sum(dim=1)",
                "negative places",
            ),
            (
                "def heat_map(weights, activations):\n"
                "    return (weights[:, :, None, None] * activations).relu().sum(dim=1)",
                "before the sum",
            ),
            (
                "def heat_map(weights, activations):\n"
                "    heat = (weights[:, :, None, None] * activations).sum(dim=1).relu()\n"
                "    return heat / heat.amax(dim=(1, 2), keepdim=True)",
                "own maximum",
            ),
        ],
        "on_tile": [
            (
                "def on_tile(maps, size):\n"
                "    return F.interpolate(maps[:, None], size=(size, size), mode='nearest')[:, 0]",
                "flat squares",
            ),
            (
                "def on_tile(maps, size):\n"
                "    return F.interpolate(\n"
                "        maps[:, None], size=(size, size), mode='bilinear', align_corners=True\n"
                "    )[:, 0]",
                "align_corners",
            ),
            (
                "def on_tile(maps, size):\n"
                "    turned = maps.transpose(1, 2)[:, None]\n"
                "    return F.interpolate(turned, size=(size, size), mode='bilinear')[:, 0]",
                "swapped",
            ),
        ],
        "hit_and_mass": [
            (
                "def hit_and_mass(heat, region):\n"
                "    hot = heat >= 0.5 * heat.max()\n"
                "    return int(region[hot].any()), (heat * region).sum() / heat.sum()",
                "single hottest",
            ),
            (
                "def hit_and_mass(heat, region):\n"
                "    mass = (heat * region).sum() / region.sum()\n"
                "    return region.ravel()[heat.argmax()], mass",
                "number of pixels",
            ),
            (
                "def hit_and_mass(heat, region):\n"
                "    mass = (heat * region).sum() / max(heat.sum(), 1e-9)\n"
                "    return region.ravel()[heat.argmax()], mass",
                "zero map",
            ),
        ],
        "boxes_at": [
            (
                "def boxes_at(heat, threshold):\n"
                "    hot = (heat >= threshold).astype(np.uint8)\n"
                "    return [tuple(r[:4]) for r in cv2.connectedComponentsWithStats(hot)[2][1:]]",
                "raw",
            ),
            (
                "def boxes_at(heat, threshold):\n"
                "    y, x = np.nonzero(heat >= threshold * heat.max())\n"
                "    return [(x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)]",
                "separate regions",
            ),
            (
                "def boxes_at(heat, threshold):\n"
                "    hot = (heat >= threshold * heat.max()).astype(np.uint8)\n"
                "    rows = cv2.connectedComponentsWithStats(hot)[2][1:]\n"
                "    return [(y, x, h, w) for x, y, w, h, _ in rows]",
                "swapped",
            ),
            (
                "def boxes_at(heat, threshold):\n"
                "    hot = (heat >= threshold * heat.max()).astype(np.uint8)\n"
                "    return [tuple(r[:4]) for r in cv2.connectedComponentsWithStats(hot)[2][1:]]",
                "map of zeros",
            ),
        ],
        "without_knowledge": [
            (
                "def without_knowledge(model):\n"
                "    for layer in model.modules():\n"
                "        if hasattr(layer, 'reset_parameters'):\n"
                "            layer.reset_parameters()\n"
                "    return model",
                "without a copy",
            ),
            (
                "def without_knowledge(model):\n"
                "    other = copy.deepcopy(model)\n"
                "    other.fc.reset_parameters()\n"
                "    return other",
                "only the last layer",
            ),
            (
                "def without_knowledge(model):\n"
                "    other = copy.deepcopy(model)\n"
                "    for layer in other.modules():\n"
                "        if isinstance(layer, (nn.Conv2d, nn.Linear)):\n"
                "            layer.reset_parameters()\n"
                "    return other",
                "Batch normalisation",
            ),
            (
                "def without_knowledge(model):\n"
                "    other = copy.deepcopy(model)\n"
                "    for weight in other.parameters():\n"
                "        nn.init.normal_(weight, std=0.1)\n"
                "    return other",
                "running means",
            ),
        ],
    },
}
