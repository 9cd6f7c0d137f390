#!/usr/bin/env python3
"""Golden values: the model's mathematics once more, in NumPy and float64, from the paper and docs/numerics.md.

    python3 tools/golden.py --output tests/golden    writes every case
    python3 tools/golden.py --compare tests/golden   recomputes and compares with what is committed
    python3 tools/golden.py --check                  proves the backward here by central differences

A case is a folder: model/ (a Hugging Face folder, f32), golden.safetensors (the batch, logits, gradients, routing) and
golden.json (loss, balance losses, counts, drop rates, coefficients). tests/test_golden.c reads them and asks the C
program for the same numbers.

Nothing here is shared with the C code: attention is a plain masked softmax over S x S, experts are visited token by
token, dropping sorts, and the weights come from integers so that every machine writes the same bytes. One file, long as
it is: an oracle should be read from one end to the other.
"""
import argparse
import json
import math
import os
import struct
import sys
from fractions import Fraction

try:
    import numpy as np
except ImportError:
    sys.exit("golden.py: NumPy is missing for this Python (apt-get install python3-numpy, then use /usr/bin/python3)")

L, D, C, F, V, B, S = 2, 24, 8, 20, 37, 2, 13


# ---- weights and text from integers ----

def integers(name, seed, n):
    """n numbers of 64 bits: splitmix64 from a starting point given by the name (FNV-1a)."""
    mask = (1 << 64) - 1
    state = 0xCBF29CE484222325 ^ seed
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 & mask
    out = []
    for _ in range(n):
        state = state + 0x9E3779B97F4A7C15 & mask
        z = state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        out.append(z ^ z >> 31)
    return out


def bell(name, seed, shape, scale):
    """Nearly normal numbers that f32 holds exactly: a sum of four 12-bit integers, centred, times a power of two."""
    values = [sum(z >> s & 0xFFF for s in (0, 12, 24, 36)) - 2 * 0xFFF for z in integers(name, seed, math.prod(shape))]
    return np.array(values, np.float64).reshape(shape) * scale / 4096


BIAS = "block_sparse_moe.gate.e_score_correction_bias"


def parameter_shapes(c):
    """Names and shapes in the order of the model: embedding, layers, final norm, head."""
    shapes = {"model.embed_tokens.weight": (V, D)}
    for l in range(L):
        p = f"model.layers.{l}."
        shapes[p + "input_layernorm.weight"] = (D,)
        shapes[p + "self_attn.q_proj.weight"] = (c["H"] * C, D)
        shapes[p + "self_attn.k_proj.weight"] = (c["G"] * C, D)
        shapes[p + "self_attn.v_proj.weight"] = (c["G"] * C, D)
        shapes[p + "self_attn.o_proj.weight"] = (D, c["H"] * C)
        shapes[p + "post_attention_layernorm.weight"] = (D,)
        if c["E"]:
            shapes[p + "block_sparse_moe.gate.weight"] = (c["E"], D)
            if c["bias_rate"]:
                shapes[p + BIAS] = (c["E"],)
            for e in range(c["E"]):
                q = p + f"block_sparse_moe.experts.{e}."
                shapes[q + "w1.weight"], shapes[q + "w3.weight"], shapes[q + "w2.weight"] = (F, D), (F, D), (D, F)
        else:
            q = p + "mlp."
            shapes[q + "gate_proj.weight"], shapes[q + "up_proj.weight"] = (F, D), (F, D)
            shapes[q + "down_proj.weight"] = (D, F)
    shapes["model.norm.weight"] = (D,)
    if not c["tied"]:
        shapes["lm_head.weight"] = (V, D)
    return shapes


def make_weights(c):
    w = {}
    for name, shape in parameter_shapes(c).items():
        if name.endswith(BIAS):
            w[name] = bell(name, c["seed"], shape, 0.25)
        elif len(shape) == 1:
            w[name] = 1 + bell(name, c["seed"], shape, 0.25)
        elif "embed" in name:
            w[name] = bell(name, c["seed"], shape, 1.0)
        else:
            w[name] = bell(name, c["seed"], shape, 0.5)
    return w


def make_batch(c):
    """B sequences of S tokens with their targets; with the document mask, positions and first visible keys restart."""
    stream = [3 + z % (V - 3) for z in integers("tokens", c["seed"], B * (S + 1))]
    tokens = np.array(stream).reshape(B, S + 1)
    begins = np.zeros((B, S + 1), bool)
    begins[:, 0] = True
    if c["document_mask"]:
        for b, places in enumerate(c["documents"]):
            for i in places:
                tokens[b, i - 1], tokens[b, i], begins[b, i] = 2, 1, True  # eos, then the next document's bos
    position, start, target = np.zeros((B, S), int), np.zeros((B, S), int), tokens[:, 1:].copy()
    for b in range(B):
        first = 0
        for i in range(S):
            if begins[b, i] and c["document_mask"]:
                first = i
            position[b, i], start[b, i] = i - first, first
            if c["document_mask"] and begins[b, i + 1]:
                target[b, i] = -1
    return {"token": tokens[:, :S], "target": target, "position": position, "start": start}


# ---- forward ----

def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x, w, eps):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * r * w, r


def norm_back(dy, x, w, r):
    """y = x r w with r = (mean x^2 + eps)^(-1/2), so dr/dx = -r^3 x / D."""
    dw = (dy * x * r).sum(0)
    dr = (dy * w * x).sum(-1, keepdims=True)
    return dy * w * r - dr * r ** 3 * x / x.shape[-1], dw


def rotate(x, position, theta, sign):
    """Channels c and c + C/2 are a plane turned by position * theta^(-2c/C)."""
    half = C // 2
    angle = position[:, None, None] * theta ** (-2.0 * np.arange(half) / C)
    a, b = x[..., :half], x[..., half:]
    cos, sin = np.cos(angle), sign * np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def visible(start, s):
    """[B, S, S] which keys each query sees."""
    i = np.arange(s)
    return (i[None, None, :] <= i[None, :, None]) & (i[None, None, :] >= start[:, :, None])


def capacity_of(factor, k, tokens, experts):
    """Assignments an expert keeps; None: all of them."""
    return math.ceil(Fraction(factor) * k * tokens / experts) if Fraction(factor) else None


def route(c, score, g, capacity):
    """The K experts of each token in order of preference, and which assignments an expert with no room left drops."""
    t_n, experts = g.shape
    chosen = np.zeros((t_n, c["K"]), int)
    for t in range(t_n):
        chosen[t] = sorted(range(experts), key=lambda e: (-score[t, e], e))[:c["K"]]
    dropped = np.zeros(chosen.shape, bool)
    if capacity is not None:
        for e in range(experts):
            mine = [(t, k) for t in range(t_n) for k in range(c["K"]) if chosen[t, k] == e]
            if c["policy"] == "probs":
                mine.sort(key=lambda tk: (-g[tk[0], e], tk[0]))
            for t, k in mine[capacity:]:
                dropped[t, k] = True
    return chosen, dropped


def previous_p(c, l):
    """Scope global: what the step before found, P of each expert over its whole batch."""
    z = np.array([v % 1000 for v in integers(f"previous P of layer {l}", c["seed"], c["E"])], float) + 500
    return z / z.sum()


def moe_forward(c, w, l, n, batch_shape, capacity, frozen):
    prefix = f"model.layers.{l}.block_sparse_moe."
    experts, lam = c["E"], c["gate_norm_std"]
    z = n @ w[prefix + "gate.weight"].T
    s = {"n": n}
    if lam:
        centred = z - z.mean(-1, keepdims=True)
        variance = (centred ** 2).sum(-1, keepdims=True) / (experts - 1)
        live = variance >= 1e-12
        s["inv"] = np.where(live, lam / np.sqrt(np.where(live, variance, 1)), 0)
        zt = centred * s["inv"]
    else:
        zt = z
    g = softmax(zt)
    score = zt + w[prefix + "gate.e_score_correction_bias"] if c["bias_rate"] else zt
    chosen, dropped = frozen if frozen else route(c, score, g, capacity)
    rows = np.arange(len(n))[:, None]
    kept_sum = g[rows, chosen].sum(-1, keepdims=True)
    weight = g[rows, chosen] / kept_sum
    y = np.zeros_like(n)
    s["expert_out"], s["a"], s["b"] = {}, {}, {}
    for t in range(len(n)):
        for k in range(c["K"]):
            if dropped[t, k]:
                continue
            q = prefix + f"experts.{chosen[t, k]}."
            a, b = w[q + "w1.weight"] @ n[t], w[q + "w3.weight"] @ n[t]
            out = w[q + "w2.weight"] @ (a / (1 + np.exp(-a)) * b)
            s["a"][t, k], s["b"][t, k], s["expert_out"][t, k] = a, b, out
            y[t] += weight[t, k] * out
    # router z-loss: of the raw logits
    top = z.max(-1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(-1, keepdims=True))
    s["z"], s["dz"] = float((lse ** 2).mean()), 2 * lse * softmax(z) / len(z)
    s.update(zt=zt, score=score, g=g, chosen=chosen, dropped=dropped, weight=weight, kept_sum=kept_sum)
    # balance loss: groups of tokens over which P (and f) are averaged
    group = batch_shape[1] if c["scope"] == "sequence" else len(n)
    s["aux"], s["aux_dg"] = 0.0, np.zeros_like(g)
    for first in range(0, len(n), group):
        part = slice(first, first + group)
        p, share = g[part].mean(0), group / len(n)
        if c["aux"] == "none":
            continue
        if c["aux"] == "skywork":
            # The gradient is that of (1/E - P)^2 at P, or at the P of the step before (scope global): then the loss
            # is the tangent there, whose value moves with the current P.
            at = previous_p(c, l) if c["scope"] == "global" else p
            s["aux"] += share * ((1 / experts - at) ** 2 - 2 * (1 / experts - at) * (p - at)).sum()
            s["aux_dg"][part] = share * -2 * (1 / experts - at) / group
        else:
            f = np.bincount(chosen[part].ravel(), minlength=experts) / (c["K"] * group)
            s["aux"] += share * experts * (f * p).sum()
            s["aux_dg"][part] = share * experts * f / group
    return y, s


def moe_backward(c, w, dw, prefix, s, dy, aux_scale, z_scale):
    n, g, weight = s["n"], s["g"], s["weight"]
    dn, dweight = np.zeros_like(n), np.zeros_like(weight)
    for (t, k), out in s["expert_out"].items():
        q = prefix + f"experts.{s['chosen'][t, k]}."
        a, b = s["a"][t, k], s["b"][t, k]
        sigma = 1 / (1 + np.exp(-a))
        dweight[t, k] = dy[t] @ out
        dout = weight[t, k] * dy[t]
        dw[q + "w2.weight"] += np.outer(dout, a * sigma * b)
        dh = w[q + "w2.weight"].T @ dout
        da, db = dh * b * (sigma + a * sigma * (1 - sigma)), dh * a * sigma
        dw[q + "w1.weight"] += np.outer(da, n[t])
        dw[q + "w3.weight"] += np.outer(db, n[t])
        dn[t] += w[q + "w1.weight"].T @ da + w[q + "w3.weight"].T @ db
    dg = aux_scale * s["aux_dg"]
    rows = np.arange(len(n))[:, None]
    # weight_k = g_k / sum g: a dropped expert's weight has no gradient, but its g is still in the sum
    dg[rows, s["chosen"]] += (dweight - (dweight * weight).sum(-1, keepdims=True)) / s["kept_sum"]
    dz = g * (dg - (dg * g).sum(-1, keepdims=True))
    if c["gate_norm_std"]:
        lam = c["gate_norm_std"]
        u = s["zt"] / lam  # (z - mean)/std, sum u^2 = E - 1
        along = (dz * u).sum(-1, keepdims=True) / (c["E"] - 1)
        dz = s["inv"] * (dz - dz.mean(-1, keepdims=True) - u * along)
    dz = dz + z_scale * s["dz"]
    dw[prefix + "gate.weight"] += dz.T @ n
    return dn + dz @ w[prefix + "gate.weight"]


def mlp_forward(w, prefix, n):
    a, b = n @ w[prefix + "gate_proj.weight"].T, n @ w[prefix + "up_proj.weight"].T
    return (a / (1 + np.exp(-a)) * b) @ w[prefix + "down_proj.weight"].T, {"n": n, "a": a, "b": b}


def mlp_backward(w, dw, prefix, s, dy):
    a, b = s["a"], s["b"]
    sigma = 1 / (1 + np.exp(-a))
    dw[prefix + "down_proj.weight"] += dy.T @ (a * sigma * b)
    dh = dy @ w[prefix + "down_proj.weight"]
    da, db = dh * b * (sigma + a * sigma * (1 - sigma)), dh * a * sigma
    dw[prefix + "gate_proj.weight"] += da.T @ s["n"]
    dw[prefix + "up_proj.weight"] += db.T @ s["n"]
    return da @ w[prefix + "gate_proj.weight"] + db @ w[prefix + "up_proj.weight"]


def attention_forward(c, w, prefix, n, batch):
    b_n, s_n = batch["token"].shape
    position = batch["position"].ravel()
    q = rotate((n @ w[prefix + "q_proj.weight"].T).reshape(-1, c["H"], C), position, c["theta"], 1)
    k = rotate((n @ w[prefix + "k_proj.weight"].T).reshape(-1, c["G"], C), position, c["theta"], 1)
    v = (n @ w[prefix + "v_proj.weight"].T).reshape(-1, c["G"], C)
    q = q.reshape(b_n, s_n, c["H"], C)
    k, v = (np.repeat(x.reshape(b_n, s_n, c["G"], C), c["H"] // c["G"], 2) for x in (k, v))
    scores = np.einsum("bihc,bjhc->bhij", q, k) / math.sqrt(C)
    p = softmax(np.where(visible(batch["start"], s_n)[:, None], scores, -np.inf))
    o = np.einsum("bhij,bjhc->bihc", p, v).reshape(-1, c["H"] * C)
    return o @ w[prefix + "o_proj.weight"].T, {"n": n, "q": q, "k": k, "v": v, "p": p, "o": o}


def attention_backward(c, w, dw, prefix, s, dy, batch):
    b_n, s_n = batch["token"].shape
    position = batch["position"].ravel()
    dw[prefix + "o_proj.weight"] += dy.T @ s["o"]
    d_o = (dy @ w[prefix + "o_proj.weight"]).reshape(b_n, s_n, c["H"], C)
    dv = np.einsum("bhij,bihc->bjhc", s["p"], d_o)
    dp = np.einsum("bihc,bjhc->bhij", d_o, s["v"])
    dscores = s["p"] * (dp - (dp * s["p"]).sum(-1, keepdims=True)) / math.sqrt(C)
    dq = np.einsum("bhij,bjhc->bihc", dscores, s["k"])
    dk = np.einsum("bhij,bihc->bjhc", dscores, s["q"])
    shared = (b_n * s_n, c["G"], c["H"] // c["G"], C)
    dk, dv = dk.reshape(shared).sum(2), dv.reshape(shared).sum(2)
    dq = rotate(dq.reshape(-1, c["H"], C), position, c["theta"], -1).reshape(-1, c["H"] * C)  # the transpose turns back
    dk = rotate(dk, position, c["theta"], -1).reshape(-1, c["G"] * C)
    dv = dv.reshape(-1, c["G"] * C)
    dn = 0
    for name, d in (("q", dq), ("k", dk), ("v", dv)):
        dw[prefix + f"{name}_proj.weight"] += d.T @ s["n"]
        dn = dn + d @ w[prefix + f"{name}_proj.weight"]
    return dn


def forward(c, w, batch, factor, frozen=None):
    """One micro-batch. frozen: for each layer the (chosen, dropped) to use instead of routing."""
    saved, x = [], w["model.embed_tokens.weight"][batch["token"].ravel()]
    for l in range(L):
        p, s = f"model.layers.{l}.", {"in": x}
        n, s["r1"] = norm(x, w[p + "input_layernorm.weight"], c["eps"])
        y, s["attn"] = attention_forward(c, w, p + "self_attn.", n, batch)
        s["mid"] = x = x + y
        n, s["r2"] = norm(x, w[p + "post_attention_layernorm.weight"], c["eps"])
        if c["E"]:
            capacity = capacity_of(factor, c["K"], len(x), c["E"])
            y, s["ffn"] = moe_forward(c, w, l, n, batch["token"].shape, capacity, frozen[l] if frozen else None)
        else:
            y, s["ffn"] = mlp_forward(w, p + "mlp.", n)
        x = x + y
        saved.append(s)
    n, r = norm(x, w["model.norm.weight"], c["eps"])
    logits = n @ w["model.embed_tokens.weight" if c["tied"] else "lm_head.weight"].T
    saved.append({"in": x, "n": n, "r": r, "logits": logits})
    return logits, saved


def cross_entropy(logits, target):
    """Sum over unmasked tokens in nats, and softmax - onehot."""
    p, live = softmax(logits), target >= 0
    rows = np.flatnonzero(live)
    d = np.where(live[:, None], p, 0)
    d[rows, target[rows]] -= 1
    return -np.log(p[rows, target[rows]]).sum(), d


def backward(c, w, dw, batch, saved, dlogits, aux_weight):
    top, head = saved[-1], "model.embed_tokens.weight" if c["tied"] else "lm_head.weight"
    dw[head] += dlogits.T @ top["n"]
    dx, d = norm_back(dlogits @ w[head], top["in"], w["model.norm.weight"], top["r"])
    dw["model.norm.weight"] += d
    for l in reversed(range(L)):
        p, s = f"model.layers.{l}.", saved[l]
        if c["E"]:
            dn = moe_backward(c, w, dw, p + "block_sparse_moe.", s["ffn"], dx, c["alpha"][l] * aux_weight,
                              c["z_coeff"] * aux_weight)
        else:
            dn = mlp_backward(w, dw, p + "mlp.", s["ffn"], dx)
        d_in, d = norm_back(dn, s["mid"], w[p + "post_attention_layernorm.weight"], s["r2"])
        dw[p + "post_attention_layernorm.weight"] += d
        dx = dx + d_in
        dn = attention_backward(c, w, dw, p + "self_attn.", s["attn"], dx, batch)
        d_in, d = norm_back(dn, s["in"], w[p + "input_layernorm.weight"], s["r1"])
        dw[p + "input_layernorm.weight"] += d
        dx = dx + d_in
    np.add.at(dw["model.embed_tokens.weight"], batch["token"].ravel(), dx)


def micro_batches(c, batch):
    step = c["micro_batch"]
    for first in range(0, B, step):
        yield {k: v[first:first + step] for k, v in batch.items()}


def objective(c, w, batch, frozen):
    """Cross entropy over all unmasked tokens of the step + alpha L_aux + z_coeff L_z, these two weighted by the
    micro-batches' tokens."""
    total, n = 0.0, (batch["target"] >= 0).sum()
    for m, part in enumerate(micro_batches(c, batch)):
        logits, saved = forward(c, w, part, c["capacity"], frozen[m])
        total += cross_entropy(logits, part["target"].ravel())[0] / n
        if c["E"]:
            share = part["token"].size / batch["token"].size
            total += sum(c["alpha"][l] * share * saved[l]["ffn"]["aux"] for l in range(L))
            total += sum(c["z_coeff"] * share * saved[l]["ffn"]["z"] for l in range(L))
    return total


# ---- optimizer ----

ADAMW = dict(lr=[0.01, 0.003], beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, clip=1.0)


def step_gradients(c, w, batch):
    dw, n = {k: np.zeros_like(v) for k, v in w.items()}, (batch["target"] >= 0).sum()
    for part in micro_batches(c, batch):
        logits, saved = forward(c, w, part, c["capacity"])
        backward(c, w, dw, part, saved, cross_entropy(logits, part["target"].ravel())[1] / n,
                 part["token"].size / batch["token"].size)
    return dw


def train(c, w, batch):
    """Decoupled weight decay on matrices that are not the router; two steps on the same batch."""
    o, m, v = ADAMW, {k: 0.0 for k in w}, {k: 0.0 for k in w}
    for t, lr in enumerate(o["lr"], 1):
        grad = step_gradients(c, w, batch)
        size, w = math.sqrt(sum(float((g * g).sum()) for g in grad.values())), dict(w)
        for k, g in grad.items():
            g = g * min(1.0, o["clip"] / size)
            m[k] = o["beta1"] * m[k] + (1 - o["beta1"]) * g
            v[k] = o["beta2"] * v[k] + (1 - o["beta2"]) * g * g
            move = m[k] / (1 - o["beta1"] ** t) / (np.sqrt(v[k] / (1 - o["beta2"] ** t)) + o["eps"])
            if w[k].ndim == 2 and "gate.weight" not in k:
                move = move + o["weight_decay"] * w[k]
            w[k] = w[k] - lr * move
    return w


# ---- FP8 ----

E4M3 = [(-1) ** (q >> 7) * (2.0 ** -6 * (q & 7) / 8 if q >> 3 & 15 == 0 else
                            2.0 ** ((q >> 3 & 15) - 7) * (1 + (q & 7) / 8)) for q in range(256) if q & 127 != 127]
E4M3_CODES = [q for q in range(256) if q & 127 != 127]


def fp8(x, scale):
    """The nearest of the 254 numbers, by search; a value halfway between two would depend on how it was divided."""
    table, codes = np.array(E4M3[:127]), np.array(E4M3_CODES[:127])
    magnitude = np.abs(x).ravel() / scale
    near = np.abs(magnitude[:, None] - table[None]).argsort(1)[:, :2]
    gap = np.abs(magnitude - table[near].mean(1)) / np.maximum(magnitude, 2.0 ** -9)
    assert gap.min() > 1e-6, "a weight lies halfway between two FP8 numbers: choose another seed"
    return (codes[near[:, 0]] | np.where(x.ravel() < 0, 128, 0)).astype(np.uint8).reshape(x.shape)


def fp8_values(c, w):
    """Layer 0: q, k and v share a scale; w1 and w3 of an expert share one; the others have their own."""
    p, out = "model.layers.0.", {}
    groups = [[p + f"self_attn.{n}_proj.weight" for n in "qkv"], [p + "self_attn.o_proj.weight"]]
    for e in range(c["E"]):
        q = p + f"block_sparse_moe.experts.{e}."
        groups += [[q + "w1.weight", q + "w3.weight"], [q + "w2.weight"]]
    for group in groups:
        scale = np.float32(max(np.abs(w[n]).max() for n in group) / 448)
        for n in group:
            out["fp8." + n] = fp8(w[n], float(scale))
            out["fp8_scale." + n] = np.array([scale], np.float32)
    return out


# ---- a case ----

BASE = dict(H=3, E=0, K=0, tied=False, eps=1e-6, theta=10000.0, gate_norm_std=0.0, document_mask=False,
            documents=[[], []], capacity="0", policy="probs", aux="none", scope="micro", alpha=[0, 0], micro_batch=2,
            z_coeff=0.0, bias_rate=0.0)
CASES = {
    "llama": dict(arch="LlamaForCausalLM", G=1, tied=True, seed=1, document_mask=True, documents=[[5], [1, 9]]),
    "mixtral": dict(arch="MixtralForCausalLM", H=4, G=2, E=4, K=2, theta=1e6, eps=1e-5, aux="switch", scope="sequence",
                    alpha=[0.25, 0.5], z_coeff=0.01, seed=2),
    "skywork-probs": dict(arch="SkyworkForCausalLM", G=3, E=8, K=2, gate_norm_std=1.0, capacity="1.1", aux="skywork",
                          alpha=[2.0, 3.0], micro_batch=1, document_mask=True, documents=[[7], [4, 11]], seed=10),
    "skywork-position": dict(arch="SkyworkForCausalLM", G=1, E=6, K=2, gate_norm_std=1.0, capacity="1.1",
                             policy="position", aux="skywork", scope="global", alpha=[3.0, 2.0], seed=10),
    "skymoe-bias": dict(arch="SkymoeForCausalLM", G=3, E=7, K=3, gate_norm_std=0.5, capacity="1.1", micro_batch=1,
                        bias_rate=0.001, z_coeff=0.02, seed=4),
}
# Drop rates of five steps, and what they are drawn from: above the cap, at it, below, and none.
ADAPTIVE = dict(drop_rates=[0.20, 0.10, 0.02, 0.0, 0.004], xi=0.2, beta=0.99, alpha_max=0.01)


def config_json(c):
    j = {"architectures": [c["arch"]], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": D,
         "initializer_range": 0.02, "intermediate_size": F, "max_position_embeddings": 64,
         "num_attention_heads": c["H"], "num_hidden_layers": L, "num_key_value_heads": c["G"],
         "rms_norm_eps": c["eps"], "rope_theta": c["theta"],
         "tie_word_embeddings": c["tied"], "torch_dtype": "float32", "use_cache": True, "vocab_size": V}
    if c["arch"] == "LlamaForCausalLM":
        j |= {"model_type": "llama", "head_dim": C, "attention_bias": False, "mlp_bias": False, "rope_scaling": None}
    elif c["arch"] == "MixtralForCausalLM":
        j |= {"model_type": "mixtral", "head_dim": C, "num_local_experts": c["E"], "num_experts_per_tok": c["K"],
              "output_router_logits": False, "router_aux_loss_coef": 0.001, "sliding_window": None}
    elif c["arch"] == "SkymoeForCausalLM":
        j |= {"model_type": "skymoe", "head_dim": C, "num_experts_per_tok": c["K"], "skymoe_num_experts": c["E"],
              "skymoe_gate_norm_std": c["gate_norm_std"], "skymoe_gate_bias": True, "sliding_window": None}
    else:
        j |= {"model_type": "skywork", "pad_token_id": 0, "rotary_percent": 1.0, "sliding_window": None,
              "num_experts": [c["E"]], "moe_expert_interval": 1, "moe_use_logits_norm": True,
              "moe_gate_norm_std": c["gate_norm_std"], "moe_2layer_gate": False, "moe_use_skywork_gating": False,
              "moe_feature_no_mul_topk": True}
    return j


def check_margins(c, layer):
    """Routing must not hang on a rounding: the last chosen and the first refused expert differ clearly, and so do the
    last kept and the first dropped assignment."""
    g, order = layer["g"], -np.sort(-layer["score"], -1)
    gap = (order[:, :c["K"]] - order[:, 1:c["K"] + 1]).min()
    if c["bias_rate"]:
        unbiased = np.sort(np.argsort(-layer["zt"], -1)[:, :c["K"]], -1)
        assert (unbiased != np.sort(layer["chosen"], -1)).any(), f"{c['name']}: the bias chooses nobody: other seed"
    assert gap > 2e-4, f"{c['name']}: logits too close ({gap:.1e}): choose another seed"
    if layer["dropped"].any() and c["policy"] == "probs":
        for e in range(c["E"]):
            kept = [g[t, e] for t, k in np.argwhere((layer["chosen"] == e) & ~layer["dropped"])]
            lost = [g[t, e] for t, k in np.argwhere((layer["chosen"] == e) & layer["dropped"])]
            assert not lost or min(kept) - max(lost) > 2e-5, f"{c['name']}: gates too close: choose another seed"


def similarity(c, w, l):
    """Mean cosine over all pairs of experts, pair by pair."""
    p = f"model.layers.{l}.block_sparse_moe.experts."
    flat = [np.concatenate([w[f"{p}{e}.{m}.weight"].ravel() for m in ("w1", "w2", "w3")]) for e in range(c["E"])]
    pairs = [(a, b) for i, a in enumerate(flat) for b in flat[i + 1:]]
    return float(np.mean([a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in pairs]))


def compute(c):
    w, batch = make_weights(c), make_batch(c)
    n, t_n = int((batch["target"] >= 0).sum()), batch["token"].size
    dw = {k: np.zeros_like(v) for k, v in w.items()}
    parts = list(micro_batches(c, batch))
    ce, logits, frozen, layers = 0.0, [], [], [[] for _ in range(L)]
    for part in parts:
        y, saved = forward(c, w, part, c["capacity"])
        loss, d = cross_entropy(y, part["target"].ravel())
        backward(c, w, dw, part, saved, d / n, part["token"].size / t_n)
        ce += loss
        logits.append(y)
        frozen.append([(s["ffn"]["chosen"], s["ffn"]["dropped"]) for s in saved[:L]] if c["E"] else None)
        for l in range(L):
            layers[l].append(saved[l]["ffn"])
    tensors = {k: v.ravel().astype(np.int32) for k, v in batch.items()}
    tensors["logits"] = np.concatenate(logits)
    # What inference computes: nothing is dropped, nothing is masked but the future.
    plain = {k: v[:1] for k, v in batch.items()}
    plain["position"], plain["start"] = np.arange(S)[None], np.zeros((1, S), int)
    tensors["decode_logits"] = forward(c, w, plain, "0")[0]
    dropless = sum(cross_entropy(forward(c, w, p, "0")[0], p["target"].ravel())[0] for p in parts)
    for k, v in dw.items():
        if not k.endswith(BIAS):  # follows counts, has no gradient
            tensors["grad." + k] = v
    for k, v in train(c, w, batch).items():
        if c["arch"] == "LlamaForCausalLM" or any(part in k for part in ("gate.weight", "norm", "experts.0.w2")):
            tensors["after." + k] = v
    norm2 = math.sqrt(sum(float((v * v).sum()) for v in dw.values()))
    j = {"case": c["name"], "batch": B, "sequence": S, "micro_batch": c["micro_batch"], "targets": n, "loss": ce / n,
         "dropless_loss": dropless / n, "grad_norm": norm2, "z_coeff": c["z_coeff"], "adamw": ADAMW}
    if c["E"]:
        j |= {"capacity_factor": c["capacity"], "policy": c["policy"], "aux": c["aux"], "scope": c["scope"],
              "capacity": capacity_of(c["capacity"], c["K"], parts[0]["token"].size, c["E"]), "layers": []}
        for l in range(L):
            for part in layers[l]:
                check_margins(c, part)
            chosen = np.concatenate([s["chosen"] for s in layers[l]])
            dropped = np.concatenate([s["dropped"] for s in layers[l]])
            g = np.concatenate([s["g"] for s in layers[l]])
            order = -np.sort(-g, -1)
            tensors[f"expert.{l}"] = chosen.astype(np.int32)
            tensors[f"dropped.{l}"] = dropped.astype(np.int32)
            tensors[f"weight.{l}"] = np.concatenate([s["weight"] for s in layers[l]])
            tensors[f"gate.{l}"] = g
            j["layers"].append({
                "alpha": c["alpha"][l], "previous_p": previous_p(c, l).tolist(),
                "aux_loss": float(sum(s["aux"] * len(s["g"]) / t_n for s in layers[l])),
                "z_loss": float(sum(s["z"] * len(s["g"]) / t_n for s in layers[l])),
                "tokens_per_expert": np.bincount(chosen.ravel(), minlength=c["E"]).tolist(),
                "dropped": int(dropped.sum()), "drop_rate": float(dropped.sum()) / (c["K"] * t_n),
                "router_entropy": float(-(g * np.log(g)).sum(-1).mean()),
                "max1_max2": float((order[:, 0] / order[:, 1]).mean()),
                "max2_max3": float((order[:, 1] / order[:, 2]).mean()), "similarity": similarity(c, w, l)})
            if c["bias_rate"]:
                load = j["layers"][-1]["tokens_per_expert"]
                before = w[f"model.layers.{l}.{BIAS}"]
                j["layers"][-1]["bias_after"] = [float(b + c["bias_rate"] * np.sign(np.mean(load) - n))
                                                 for b, n in zip(before, load)]
        if c["bias_rate"]:
            j["bias_rate"] = c["bias_rate"]
        if c["aux"] == "skywork":
            tensors |= fp8_values(c, w)
            a, sequence = ADAPTIVE, [ADAPTIVE["alpha_max"]]
            for d in a["drop_rates"]:
                sequence.append(a["beta"] * sequence[-1] + (1 - a["beta"]) * min(a["xi"] * d, a["alpha_max"]))
            j["adaptive"] = ADAPTIVE | {"alpha": sequence[1:]}
    return w, tensors, j, batch, dw, frozen


# ---- files ----

DTYPES = {"float64": "F64", "float32": "F32", "int32": "I32", "uint8": "U8"}


def write_safetensors(path, tensors):
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name in sorted(tensors, key=lambda k: (-tensors[k].itemsize, k)):
        raw = np.ascontiguousarray(tensors[name]).tobytes()
        header[name] = {"dtype": DTYPES[str(tensors[name].dtype)], "shape": list(tensors[name].shape),
                        "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def read_safetensors(path):
    with open(path, "rb") as f:
        raw = f.read()
    n = struct.unpack("<Q", raw[:8])[0]
    kinds = {v: k for k, v in DTYPES.items()}
    out = {}
    for name, e in json.loads(raw[8:8 + n]).items():
        if name != "__metadata__":
            a, b = e["data_offsets"]
            out[name] = np.frombuffer(raw[8 + n + a:8 + n + b], kinds[e["dtype"]]).reshape(e["shape"])
    return out


def write_case(folder, c):
    w, tensors, j, *_ = compute(c)
    os.makedirs(os.path.join(folder, "model"), exist_ok=True)
    f32 = {k: v.astype(np.float32) for k, v in w.items()}
    assert all((f32[k] == w[k]).all() for k in w), "weights must be exact in f32"
    write_safetensors(os.path.join(folder, "model", "model.safetensors"), f32)
    with open(os.path.join(folder, "model", "config.json"), "w") as f:
        f.write(json.dumps(config_json(c), indent=2) + "\n")
    write_safetensors(os.path.join(folder, "golden.safetensors"), tensors)
    with open(os.path.join(folder, "golden.json"), "w") as f:
        f.write(json.dumps(j, indent=1) + "\n")


def largest_difference(a, b, where):
    """Of two JSON trees; everything that is not a float must be equal."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max([largest_difference(a[k], b[k], f"{where}.{k}") for k in a], default=0.0)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return max([largest_difference(x, y, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b))], default=0.0)
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) / max(1.0, abs(b))
    if a != b or type(a) is not type(b):
        sys.exit(f"golden.py: {where}: now {a}, committed {b} (regenerate with --output, or find what changed)")
    return 0.0


def compare_case(folder, c):
    w, tensors, j, *_ = compute(c)
    stored = read_safetensors(os.path.join(folder, "model", "model.safetensors"))
    committed = read_safetensors(os.path.join(folder, "golden.safetensors"))
    for kind, now, then in (("model", w, stored), ("golden", tensors, committed)):
        if now.keys() != then.keys():
            sys.exit(f"golden.py: {folder}: {kind} tensors differ: {sorted(now.keys() ^ then.keys())}")
    worst = 0.0
    for name, x in (w | tensors).items():
        y = stored[name] if name in w else committed[name]
        exact = name in w or x.dtype != np.float64
        size = max(1e-3, float(np.abs(y).max()))
        error = float(np.abs(x.astype(np.float64) - y.astype(np.float64)).max()) / size
        if x.shape != y.shape or not error <= (0 if exact else 1e-12):
            sys.exit(f"golden.py: {folder}: {name} differs from the committed values by {error:.3e}")
        worst = max(worst, error)
    with open(os.path.join(folder, "golden.json")) as f:
        error = largest_difference(j, json.load(f), folder + "/golden.json")
    with open(os.path.join(folder, "model", "config.json")) as f:
        largest_difference(config_json(c), json.load(f), folder + "/model/config.json")
    worst = max(worst, error)
    print(f"{c['name']}: {len(tensors)} tensors, largest difference {worst:.1e}")
    return worst <= 1e-12


# ---- proof of the backward above ----

def check_case(c):
    w, tensors, j, batch, dw, frozen = compute(c)
    worst = 0.0
    for name in w:
        if name.endswith(BIAS):
            continue
        direction = bell("direction of " + name, c["seed"], w[name].shape, 1.0)
        step = 1e-5

        def at(offset):
            return objective(c, w | {name: w[name] + offset * direction}, batch, frozen)
        numeric = (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)  # error O(step^4)
        analytic = float((dw[name] * direction).sum())
        size = math.sqrt(float((dw[name] ** 2).sum() * (direction ** 2).sum()))
        error = abs(numeric - analytic) / max(0.1 * size, abs(analytic), 1e-30)
        if not error <= 2e-8 or size == 0:
            sys.exit(f"golden.py: {c['name']}: {name}: gradient {analytic:.10e}, differences say {numeric:.10e}")
        worst = max(worst, error)
    dropped = [layer["dropped"] for layer in j.get("layers", [])]
    print(f"{c['name']}: {len(w)} gradients = central differences, largest error {worst:.1e}; dropped {dropped}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--output", metavar="DIR", help="write all cases")
    group.add_argument("--compare", metavar="DIR", help="recompute and compare with the cases in DIR")
    group.add_argument("--check", action="store_true", help="central differences")
    args = parser.parse_args()
    failed = 0
    for name, settings in CASES.items():
        c = BASE | settings | {"name": name}
        if args.check:
            check_case(c)
        elif args.output:
            write_case(os.path.join(args.output, name), c)
        elif not compare_case(os.path.join(args.compare, name), c):
            failed += 1
    if not args.output:
        print(f"{len(CASES) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
