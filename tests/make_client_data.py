"""Makes the small files that tests of text and image inputs use:

    python3 tests/make_client_data.py     (needs numpy, onnx, pillow)

models/tiny_text.onnx            a bag of words: embedding, one hidden layer, mean over 8 tokens, two classes
data/tiny_tokenizer.json         its tokenizer
data/tiny_labels.txt             its classes
data/tiny_text_calibration.npz   random sentences of its vocabulary
data/digit_8.png                 sample 3 of digits_dev.npz, as 8-bit greys

The model's weights are set by hand, not trained: a word's embedding is how positive and how negative it is.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

HERE = Path(__file__).parent
TOKENS = 8
VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] the film was a is not very and good great bad awful fine dull fun slow plot actor ##s ##ly . !"
).split()
POSITIVE = {"good": 1.0, "great": 2.0, "fine": 0.5, "fun": 1.0}
NEGATIVE = {"bad": 1.0, "awful": 2.0, "dull": 1.0, "slow": 0.5, "not": 1.0}


def tokenizer():
    special = [
        dict(id=i, content=t, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        for i, t in enumerate(VOCABULARY[:4])
    ]
    one = lambda token, i: {"id": token, "ids": [i], "tokens": [token]}
    first, last = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}
    sequence = lambda name, type_id: {"Sequence": {"id": name, "type_id": type_id}}
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": TOKENS, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": TOKENS}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, sequence("A", 0), last],
            "pair": [first, sequence("A", 0), last, sequence("B", 1), last],
            "special_tokens": {"[CLS]": one("[CLS]", 2), "[SEP]": one("[SEP]", 3)},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": {t: i for i, t in enumerate(VOCABULARY)}},
    }


def model():
    table = np.zeros((len(VOCABULARY), 2), np.float32)
    for column, words in enumerate([NEGATIVE, POSITIVE]):
        for word, weight in words.items():
            table[VOCABULARY.index(word), column] = weight
    hidden = np.array([[1.0, -0.5, 0.5], [-0.5, 1.0, 0.5]], np.float32)
    head = np.array([[4.0, -4.0], [-4.0, 4.0], [0.0, 0.0]], np.float32)
    constants = [
        numpy_helper.from_array(value, name)
        for name, value in [("embedding", table), ("hidden.weight", hidden), ("head.weight", head),
                            ("head.bias", np.array([0.1, -0.1], np.float32))]
    ]
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"], "embed", axis=0),
        helper.make_node("MatMul", ["embedded", "hidden.weight"], ["hidden"], "hidden"),
        helper.make_node("Relu", ["hidden"], ["active"], "relu"),
        helper.make_node("ReduceMean", ["active"], ["pooled"], "pool", axes=[1], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head.weight"], ["scores"], "head"),
        helper.make_node("Add", ["scores", "head.bias"], ["logits"], "head_bias"),
    ]
    graph = helper.make_graph(
        nodes, "tiny_text",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def calibration():
    random = np.random.default_rng(0)
    ids = np.zeros((256, TOKENS), np.int64)
    for row in ids:
        words = random.integers(1, TOKENS - 1)
        row[: words + 2] = [2, *random.integers(4, len(VOCABULARY), words), 3]
    return ids


def main():
    (HERE / "data/tiny_tokenizer.json").write_text(json.dumps(tokenizer()) + "\n")
    (HERE / "data/tiny_labels.txt").write_text("negative\npositive\n")
    np.savez_compressed(HERE / "data/tiny_text_calibration.npz", input_ids=calibration())
    onnx.save(model(), HERE / "models/tiny_text.onnx")
    image = np.load(HERE / "data/digits_dev.npz")["image"][3, 0]
    Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(HERE / "data/digit_8.png")


main()
