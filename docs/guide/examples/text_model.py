"""Trains a small text classifier on made-up sentences, and writes what `thex compile` wants: the model and typical inputs.

    python3 docs/guide/examples/text_model.py     (needs torch and numpy; with torch 2.9 or later also onnxscript)

model.onnx         input_ids, attention_mask -> logits
calibration.npz    inputs, for `thex compile`
dev.npz            other inputs, with `label`, for `thex evaluate`
"""

import json

import numpy
import torch
from torch import nn

TOKENS, WIDTH, HEADS = 8, 16, 2
words = json.load(open("tests/data/tiny_tokenizer.json"))["model"]["vocab"]


# ANCHOR: model
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x, mask):
        def heads(t):
            return t.view(t.shape[0], TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)

        q, k, v = (heads(t) for t in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        scores = scores + (1.0 - mask[:, None, None]) * -10000.0
        context = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        x = self.norm1(x + self.out(context))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.positions = nn.Embedding(len(words), WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.block, self.head = Block(), nn.Linear(WIDTH, 2)

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids) + self.positions(torch.arange(TOKENS))
        x = self.block(x, attention_mask.float())
        return self.head(x[:, 0])  # the [CLS] token
# ANCHOR_END: model


def sentences(count, seed):
    """Ids, masks and labels: of positive and negative words among others, more are positive, or more are negative."""
    kinds = [["bad", "awful", "dull", "slow"], ["good", "great", "fine", "fun"]]  # in the order of tiny_labels.txt
    others = ["the", "film", "was", "a", "is", "very", "and", "plot", "actor", "."]
    random = numpy.random.default_rng(seed)
    ids, masks, labels = [], [], []
    for _ in range(count):
        label, length = random.integers(2), random.integers(1, TOKENS - 1)
        more = length // 2 + 1  # words of the label's kind; the rest is anything
        rest = [*random.choice(others, length - more)]
        sentence = [*random.choice(kinds[label], more), *rest]
        random.shuffle(sentence)
        sentence = ["[CLS]", *sentence, "[SEP]"]
        padding = TOKENS - len(sentence)
        ids.append([words[w] for w in sentence] + [words["[PAD]"]] * padding)
        masks.append([1] * len(sentence) + [0] * padding)
        labels.append(label)
    return numpy.array(ids), numpy.array(masks), numpy.array(labels)


def train(model, ids, masks, labels):
    ids, masks, labels = (torch.from_numpy(a) for a in (ids, masks, labels))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        batch = torch.randint(len(labels), (64,))
        loss = nn.functional.cross_entropy(model(ids[batch], masks[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


torch.manual_seed(0)
model = Classifier()
train(model, *sentences(2000, seed=1))
model.eval()

# ANCHOR: export
ids, masks, _ = sentences(500, seed=2)
numpy.savez_compressed("calibration.npz", input_ids=ids, attention_mask=masks)
ids, masks, labels = sentences(300, seed=3)
numpy.savez_compressed("dev.npz", input_ids=ids, attention_mask=masks, label=labels)

example = torch.from_numpy(ids[:1]), torch.from_numpy(masks[:1])  # batch 1, and the length to compile for
names = ["input_ids", "attention_mask"]
torch.onnx.export(model, example, "model.onnx", input_names=names, output_names=["logits"], opset_version=17)
# ANCHOR_END: export
