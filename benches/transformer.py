"""A small decoder-only transformer in NumPy, loss and gradients: a real task for benchmarks of training."""

import numpy as np

import ravine as rv

EXPANSION = 4


def new_params(rng, letters, *, length, width, blocks, dtype=np.float32):
    """Make the parameters of a model of so many letters and places; weights have deviation 1/√(inputs)."""

    def weight(rows, columns, scale=1.0):
        return (rng.standard_normal((rows, columns)) * scale / np.sqrt(rows)).astype(dtype)

    def norm():
        return {"weight": np.ones(width, dtype), "bias": np.zeros(width, dtype)}

    def block():
        return {
            "before_attention": norm(),
            "queries_keys_values": weight(width, 3 * width),
            "attended": weight(width, width, 1 / np.sqrt(2 * blocks)),
            "before_mlp": norm(),
            "up": weight(width, EXPANSION * width),
            "down": weight(EXPANSION * width, width, 1 / np.sqrt(2 * blocks)),
        }

    return {
        "letters": (0.1 * rng.standard_normal((letters, width))).astype(dtype),
        "places": (0.1 * rng.standard_normal((length, width))).astype(dtype),
        "blocks": [block() for _ in range(blocks)],
        "last": norm(),
        "scores": weight(width, letters),
    }


def loss_and_grads(params, batch, *, heads, gradients=True):
    """Give the mean loss of each next letter, in nats, and the gradients in the params' nesting.

    ``batch`` has the numbers of letters, of shape (texts, length + 1). Each place sees itself and those before.
    """
    seen, right = batch[:, :-1], batch[:, 1:]
    x = params["letters"][seen] + params["places"][: seen.shape[1]]
    kept = []
    for block in params["blocks"]:
        x, attention = attend(block, x, heads)
        x, mlp = think(block, x)
        kept.append((attention, mlp))
    normed, last = normalised(params["last"], x)
    scores = normed @ params["scores"]
    loss, d = rv.nn.softmax_cross_entropy(scores.reshape(-1, scores.shape[-1]), right.reshape(-1))
    if not gradients:
        return loss, None
    d = d.reshape(scores.shape)
    grads = {"scores": product_of_all(normed, d)}
    d, grads["last"] = normalised_back(params["last"], d @ params["scores"].T, last)
    grads["blocks"] = []
    for block, (attention, mlp) in zip(reversed(params["blocks"]), reversed(kept), strict=True):
        d, of_mlp = think_back(block, d, mlp)
        d, of_attention = attend_back(block, d, attention)
        grads["blocks"].insert(0, {**of_attention, **of_mlp})
    grads["places"] = np.zeros_like(params["places"])
    grads["places"][: seen.shape[1]] = d.sum(0)
    grads["letters"] = np.zeros_like(params["letters"])
    np.add.at(grads["letters"], seen, d)
    return loss, grads


def product_of_all(x, dy):
    """Sum xᵀ·dy over texts and places."""
    return x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])


def normalised(norm, x):
    y, saved = rv.layer_norm(x, norm["weight"], norm["bias"])
    return y, (x, saved)


def normalised_back(norm, dy, kept):
    x, saved = kept
    dx, weight, bias = rv.layer_norm_backward(dy, x, saved, norm["weight"], norm["bias"])
    return dx, {"weight": weight, "bias": bias}


def attend(block, x, heads):
    """Add to each place what it takes from itself and those before it."""
    texts, length, width = x.shape
    normed, before = normalised(block["before_attention"], x)
    three = (normed @ block["queries_keys_values"]).reshape(texts, length, 3, heads, width // heads)
    q, k, v = three.transpose(2, 0, 3, 1, 4)
    scale = x.dtype.type(1 / np.sqrt(width // heads))
    scores = q @ k.swapaxes(-1, -2) * scale
    scores = np.where(np.tri(length, dtype=bool), scores, x.dtype.type(-np.inf))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    taken = (weights @ v).swapaxes(1, 2).reshape(x.shape)
    return x + taken @ block["attended"], (normed, before, q, k, v, scale, weights, taken)


def attend_back(block, dy, kept):
    normed, before, q, k, v, scale, weights, taken = kept
    texts, length, width = dy.shape
    grads = {"attended": product_of_all(taken, dy)}
    d = (dy @ block["attended"].T).reshape(texts, length, q.shape[1], -1).swapaxes(1, 2)
    of_weights = d @ v.swapaxes(-1, -2)
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdims=True)) * scale
    three = np.stack([of_scores @ k, of_scores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ d])
    d = three.transpose(1, 3, 0, 2, 4).reshape(texts, length, 3 * width)
    grads["queries_keys_values"] = product_of_all(normed, d)
    d, grads["before_attention"] = normalised_back(
        block["before_attention"], d @ block["queries_keys_values"].T, before
    )
    return dy + d, grads


def think(block, x):
    """Add to each place a function of itself, with units x·σ(x)."""
    normed, before = normalised(block["before_mlp"], x)
    inner = normed @ block["up"]
    gate = 1 / (1 + np.exp(-inner))
    outer = inner * gate
    return x + outer @ block["down"], (normed, before, gate, outer)


def think_back(block, dy, kept):
    normed, before, gate, outer = kept
    grads = {"down": product_of_all(outer, dy)}
    d = dy @ block["down"].T * (gate + outer * (1 - gate))
    grads["up"] = product_of_all(normed, d)
    d, grads["before_mlp"] = normalised_back(block["before_mlp"], d @ block["up"].T, before)
    return dy + d, grads
