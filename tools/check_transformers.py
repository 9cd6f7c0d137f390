#!/usr/bin/env python3
"""Compares skymoe with transformers on the same model folders (outside CI: needs torch and transformers from PyPI).

    check_transformers.py SKYMOE FOLDER...      folders that skymoe wrote, f32
    check_transformers.py SKYMOE --make DIR     folders that transformers writes into DIR: tiny Llama, Mistral, Mixtral

For each folder: the same token ids through AutoModelForCausalLM in f32 and through `skymoe eval --tokens ... --logits`;
the largest difference of a logit must be at most 1e-4. Where the folder has a tokenizer.model, AutoTokenizer must load and
give the ids that SentencePiece gives, and the text back. The last line is `N passed, N failed`.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers

LIMIT = 1e-4
TEXTS = ["Hello world, this is a test.", " two  spaces\nand a line", "1234567890 + 3.14", "中文文本，标点。", "naïve café 🙂", "a"]


def reference_logits(folder, ids):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy(), type(model).__name__


def skymoe_logits(skymoe, folder, ids):
    with tempfile.TemporaryDirectory() as place:
        out = os.path.join(place, "logits.npy")
        command = [skymoe, "eval", "--model", folder, "--tokens", ",".join(map(str, ids)), "--logits", out, "--quiet"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise RuntimeError(result.stderr.strip())
        return np.load(out)


def check_logits(skymoe, folder, tokens):
    config = transformers.AutoConfig.from_pretrained(folder)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, tokens).tolist()
    want, name = reference_logits(folder, ids)
    got = skymoe_logits(skymoe, folder, ids)
    if got.shape != want.shape:
        raise RuntimeError(f"logits have shape {got.shape}, expected {want.shape}")
    difference, size = np.abs(got.astype(np.float64) - want).max(), np.abs(want).max()
    fine = bool(difference <= LIMIT) and size > 0
    window = getattr(config, "sliding_window", None)
    print(f"{folder}: {name}, {tokens} tokens{f', window {window}' if window else ''}: largest difference "
          f"{difference:.2e} of logits up to {size:.2f}: {'ok' if fine else 'TOO LARGE'}")
    return fine


def check_tokenizer(folder, texts):
    import sentencepiece

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pieces = sentencepiece.SentencePieceProcessor(model_file=os.path.join(folder, "tokenizer.model"))
    fine = True
    for text in texts:
        got, want = tokenizer.encode(text, add_special_tokens=False), pieces.encode(text)
        if got != want or tokenizer.decode(got) != text:
            print(f"{folder}: {text[:60]!r}: AutoTokenizer gives {got[:20]}, SentencePiece {want[:20]}")
            fine = False
    first = tokenizer.encode("x")[0]
    if pieces.bos_id() >= 0 and first != pieces.bos_id():
        print(f"{folder}: AutoTokenizer begins with {first}, expected bos {pieces.bos_id()}")
        fine = False
    print(f"{folder}: {type(tokenizer).__name__}, {len(tokenizer)} pieces, {len(texts)} texts: "
          f"{'ok' if fine else 'DIFFERENT'}")
    return fine


def make(place):
    shape = dict(vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
                 num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.15, pad_token_id=0)
    models = {
        "llama": transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)),
        "llama-tied": transformers.LlamaForCausalLM(transformers.LlamaConfig(tie_word_embeddings=True, **shape)),
        "mistral": transformers.MistralForCausalLM(transformers.MistralConfig(sliding_window=16, head_dim=12, **shape)),
        "mixtral": transformers.MixtralForCausalLM(
            transformers.MixtralConfig(num_local_experts=6, num_experts_per_tok=2, sliding_window=None, **shape)),
    }
    folders = []
    for name, model in models.items():
        folder = os.path.join(place, name)
        model.save_pretrained(folder, max_shard_size="100KB")
        folders.append(folder)
    return folders


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("skymoe")
    parser.add_argument("folder", nargs="*")
    parser.add_argument("--make", metavar="DIR")
    parser.add_argument("--tokens", type=int, default=70)
    parser.add_argument("--texts", metavar="FILE", nargs="*", default=[], help="also tokenize these files, line by line")
    arguments = parser.parse_args()
    torch.manual_seed(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    folders = arguments.folder + (make(arguments.make) if arguments.make else [])
    texts = TEXTS + [line for path in arguments.texts for line in open(path, encoding="utf-8").read().split("\n")]
    passed = failed = 0
    for folder in folders:
        checks = [lambda: check_logits(arguments.skymoe, folder, arguments.tokens)]
        if os.path.exists(os.path.join(folder, "tokenizer.model")):
            checks.append(lambda: check_tokenizer(folder, texts))
        for check in checks:
            try:
                fine = check()
            except Exception as error:  # one folder's failure must not hide the others
                print(f"{folder}: {type(error).__name__}: {error}")
                fine = False
            passed, failed = passed + fine, failed + (not fine)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
