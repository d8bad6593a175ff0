#!/usr/bin/env python3
"""Makes the small models of this folder, with inputs and onnxruntime's outputs beside each (`expected_*`).

    pip install torch onnx onnxruntime onnxscript transformers numpy
    python generate.py [NAME…]

Each model is one layer of width 8 or 16, so that it fits a repository; what matters is how an exporter spells it.
Arrays of an .npz are named after the ONNX inputs. The weights are random, from a fixed seed.
"""

import math
import pathlib
import sys
import tempfile
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

HERE = pathlib.Path(__file__).parent
TOKENS, WIDTH, HEADS, HIDDEN, VOCABULARY = 6, 16, 2, 24, 20
MOST_BYTES = 60_000


class Attention(nn.Module):
    """Multi-head attention; `scale` says where 1/sqrt(d) goes."""

    def __init__(self, scale="scores", fused=False, kv_heads=HEADS, causal=False, sdpa=False, rotary=False, bias=True):
        super().__init__()
        self.scale, self.fused, self.kv_heads, self.causal, self.sdpa = scale, fused, kv_heads, causal, sdpa
        self.depth = WIDTH // HEADS
        if fused:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=bias)
        else:
            self.q = nn.Linear(WIDTH, WIDTH, bias=bias)
            self.k = nn.Linear(WIDTH, kv_heads * self.depth, bias=bias)
            self.v = nn.Linear(WIDTH, kv_heads * self.depth, bias=bias)
        self.o = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.rotary = rotary
        if rotary:
            angle = torch.arange(TOKENS)[:, None] / 10000 ** (torch.arange(0, self.depth, 2) / self.depth)
            angle = torch.cat([angle, angle], -1)
            self.register_buffer("cos", angle.cos())
            self.register_buffer("sin", angle.sin())

    def heads(self, x, count):
        return x.view(1, -1, count, self.depth).transpose(1, 2)

    def rotate(self, x):
        half = self.depth // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * self.cos + turned * self.sin

    def project(self, x):
        if self.fused:
            q, k, v = self.qkv(x).chunk(3, -1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = self.heads(q, HEADS), self.heads(k, self.kv_heads), self.heads(v, self.kv_heads)
        if self.rotary:
            q, k = self.rotate(q), self.rotate(k)
        if self.kv_heads != HEADS:
            repeat = HEADS // self.kv_heads
            k, v = (t[:, :, None].expand(1, self.kv_heads, repeat, -1, self.depth).flatten(1, 2) for t in (k, v))
        return q, k, v

    def forward(self, x, mask=None):
        q, k, v = self.project(x)
        if self.sdpa:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        else:
            root = self.depth ** -0.25
            if self.scale == "split":
                scores = (q * root) @ (k * root).transpose(-1, -2)
            elif self.scale == "query":
                scores = (q * root * root) @ k.transpose(-1, -2)
            else:
                scores = q @ k.transpose(-1, -2) / math.sqrt(self.depth)
            if self.causal:
                forbidden = torch.triu(torch.full((TOKENS, TOKENS), float("-inf")), 1)
                scores = scores + forbidden
            if mask is not None:
                scores = scores + mask
            y = scores.softmax(-1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


class RmsNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class SwiGlu(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Ffn(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.up, self.down, self.activation = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH), activation

    def forward(self, x):
        return self.down(self.activation(self.up(x)))


class Llama(nn.Module):
    """Decoder layer with RMS norms, rotary positions, causal attention and a gated FFN."""

    def __init__(self, kv_heads=HEADS, sdpa=False):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.attention = Attention(causal=True, rotary=True, kv_heads=kv_heads, sdpa=sdpa, bias=False)
        self.norms = nn.ModuleList(RmsNorm() for _ in range(3))
        self.ffn, self.head = SwiGlu(), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        x = x + self.attention(self.norms[0](x))
        x = x + self.ffn(self.norms[1](x))
        return self.head(self.norms[2](x))


class Encoder(nn.Module):
    """Encoder layer on vectors, pre- or post-norm, with a choice of head."""

    def __init__(self, pre=True, activation=F.gelu, head=None, affine=True, **attention):
        super().__init__()
        self.pre, self.attention, self.ffn = pre, Attention(**attention), Ffn(activation)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, elementwise_affine=affine) for _ in range(2))
        self.head = head or nn.Identity()

    def forward(self, x):
        if self.pre:
            x = x + self.attention(self.norms[0](x))
            x = x + self.ffn(self.norms[1](x))
        else:
            x = self.norms[0](x + self.attention(x))
            x = self.norms[1](x + self.ffn(x))
        return self.head(x)


class Pooler(nn.Module):
    def __init__(self):
        super().__init__()
        self.dense, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.dense(x[:, 0])))


class Sigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, x):
        return torch.sigmoid(self.out(x.mean(1))).squeeze(-1)


class Several(nn.Module):
    """Hidden states, pooled vector, and logits."""

    def __init__(self):
        super().__init__()
        self.encoder, self.out = Encoder(), nn.Linear(WIDTH, 2)

    def forward(self, x):
        hidden = self.encoder(x)
        pooled = hidden.mean(1)
        return hidden, pooled, self.out(pooled).log_softmax(-1)


class Masked(nn.Module):
    """Embeddings of tokens, positions and segments; masked attention; mean over the tokens that are there."""

    def __init__(self, sdpa=False):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.norm, self.attention, self.ffn = nn.LayerNorm(WIDTH), Attention(sdpa=sdpa), Ffn(F.gelu)
        self.sdpa = sdpa

    def forward(self, input_ids, attention_mask):
        x = self.norm(self.tokens(input_ids) + self.positions(torch.arange(TOKENS))[None])
        if self.sdpa:
            mask = attention_mask[:, None, None].bool().expand(1, 1, TOKENS, TOKENS)
        else:
            mask = (1.0 - attention_mask[:, None, None].float()) * torch.finfo(torch.float32).min
        x = x + self.attention(x, mask)
        x = x + self.ffn(x)
        weight = attention_mask[..., None].float()
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


class Patches(nn.Module):
    """A ViT: patches by convolution, class token, positions, pre-norm layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 4, 4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 5, WIDTH))
        self.encoder, self.out = Encoder(fused=True), nn.Linear(WIDTH, 4)

    def forward(self, image):
        x = self.conv(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(1, -1, -1), x], 1) + self.positions
        return self.out(self.encoder(x)[:, 0])


class Pointwise(nn.Module):
    """An FFN made of convolutions with kernel 1, and a mean over the tokens."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Conv1d(WIDTH, HIDDEN, 1), nn.Conv1d(HIDDEN, WIDTH, 1)

    def forward(self, x):
        y = self.down(F.relu(self.up(self.norm(x).transpose(1, 2)))).transpose(1, 2)
        return (x + y).mean(1)


class Gpt(nn.Module):
    """GPT-2's block: Gemm on flattened tokens (its Conv1D), Split, tanh GELU."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        shapes = {"qkv": (WIDTH, 3 * WIDTH), "proj": (WIDTH, WIDTH), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
        self.w = nn.ParameterDict({k: nn.Parameter(torch.randn(s) * s[0] ** -0.5) for k, s in shapes.items()})
        self.b = nn.ParameterDict({k: nn.Parameter(torch.randn(s[1]) * 0.1) for k, s in shapes.items()})

    def conv1d(self, x, name):
        y = torch.addmm(self.b[name], x.view(-1, x.size(-1)), self.w[name])
        return y.view(*x.size()[:-1], y.size(-1))

    def forward(self, x):
        q, k, v = self.conv1d(self.norms[0](x), "qkv").split(WIDTH, -1)
        heads = lambda t: t.view(1, TOKENS, HEADS, -1).transpose(1, 2)
        scores = heads(q) @ heads(k).transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        allowed = torch.tril(torch.ones(TOKENS, TOKENS, dtype=torch.bool))
        scores = torch.where(allowed, scores, torch.tensor(torch.finfo(torch.float32).min))
        y = (scores.softmax(-1) @ heads(v)).transpose(1, 2).reshape(1, TOKENS, WIDTH)
        x = x + self.conv1d(y, "proj")
        up = self.conv1d(self.norms[1](x), "up")
        act = 0.5 * up * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (up + 0.044715 * torch.pow(up, 3.0))))
        return x + self.conv1d(act, "down")


class Alibi(nn.Module):
    """Scores with a constant bias by distance, and quick GELU (x times sigmoid of 1.702 x)."""

    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.ffn = Ffn(lambda x: x * torch.sigmoid(1.702 * x))
        distance = -(torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)[None]).abs().float()
        self.register_buffer("bias", torch.tensor([0.5, 0.25])[:, None, None] * distance)

    def forward(self, x):
        x = x + self.attention(self.norm(x), self.bias)
        return x + self.ffn(x)


class T5(nn.Module):
    """T5's encoder block: RMS norms, unscaled scores with a relative bias, gated GELU."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(RmsNorm() for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.bias = nn.Embedding(2 * TOKENS - 1, HEADS)
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x):
        y = self.norms[0](x)
        heads = lambda t: t.view(1, TOKENS, HEADS, -1).transpose(1, 2)
        place = torch.arange(TOKENS)
        bias = self.bias(place[None] - place[:, None] + TOKENS - 1).permute(2, 0, 1)[None]
        weights = (heads(self.q(y)) @ heads(self.k(y)).transpose(3, 2) + bias).float().softmax(-1)
        x = x + self.o((weights @ heads(self.v(y))).transpose(1, 2).reshape(1, TOKENS, WIDTH))
        y = self.norms[1](x)
        gate = 0.5 * (g := self.gate(y)) * (1.0 + torch.tanh(0.7978845608028654 * (g + 0.044715 * g**3)))
        return self.norms[2](x + self.down(gate * self.up(y)))


class Einsum(nn.Module):
    """Attention spelt with einsum, masked_fill with -1e9, and leaky ReLU."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ffn, self.norm = Ffn(lambda x: F.leaky_relu(x, 0.1)), nn.LayerNorm(WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).view(1, TOKENS, 3, HEADS, -1).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (WIDTH // HEADS) ** -0.5
        hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(hidden, -1e9).softmax(-1)
        x = self.norm(x + self.o(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)))
        return x + self.ffn(x)


class Mixer(nn.Module):
    """An MLP over the tokens and one over the channels, with hard swish."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.up, self.down, self.ffn = nn.Linear(TOKENS, 8), nn.Linear(8, TOKENS), Ffn(F.hardswish)

    def forward(self, x):
        y = self.down(F.gelu(self.up(self.norms[0](x).transpose(1, 2)))).transpose(1, 2)
        x = x + y
        return x + self.ffn(self.norms[1](x))


def torch_layer(**options):
    return nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True, **options)


class Stock(nn.Module):
    """PyTorch's own encoder layer."""

    def __init__(self, **options):
        super().__init__()
        self.layer = torch_layer(**options)

    def forward(self, x):
        return self.layer(x)


def vectors():
    return {"x": torch.randn(1, TOKENS, WIDTH)}


def tokens():
    return {"input_ids": torch.randint(0, VOCABULARY, (1, TOKENS))}


def masked_tokens():
    return tokens() | {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}


def image():
    return {"image": torch.randn(1, 3, 8, 8)}


def hugging_face(kind):
    import transformers

    common = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": 1,
              "num_attention_heads": HEADS, "max_position_embeddings": 16, "attn_implementation": "eager"}
    if kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=1, use_cache=False, **common))
    else:
        model = transformers.RobertaModel(transformers.RobertaConfig(**common), add_pooling_layer=True)

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids):
            return self.model(input_ids=input_ids)[0]

    return First()


# name: (model, inputs, opset, dynamo, names of the outputs)
TORCH = {
    "llama_legacy17": (Llama, tokens, 17, False, ["logits"]),
    "llama_dynamo18": (Llama, tokens, 18, True, ["logits"]),
    "llama_gqa_legacy17": (lambda: Llama(kv_heads=1), tokens, 17, False, ["logits"]),
    "llama_sdpa_dynamo23": (lambda: Llama(sdpa=True), tokens, 23, True, ["logits"]),
    "llama_hf_dynamo18": (lambda: hugging_face("llama"), tokens, 18, True, ["logits"]),
    "roberta_hf_dynamo20": (lambda: hugging_face("roberta"), tokens, 20, True, ["hidden"]),
    "preln_relu_sigmoid_legacy14": (lambda: Encoder(True, F.relu, Sigmoid()), vectors, 14, False, ["probability"]),
    "postln_relu_pooler_legacy17": (lambda: Encoder(False, F.relu, Pooler()), vectors, 17, False, ["logits"]),
    "postln_relu_pooler_dynamo18": (lambda: Encoder(False, F.relu, Pooler()), vectors, 18, True, ["logits"]),
    "split_scale_legacy17": (lambda: Encoder(scale="split"), vectors, 17, False, ["y"]),
    "split_scale_dynamo20": (lambda: Encoder(scale="split"), vectors, 20, True, ["y"]),
    "query_scale_legacy14": (lambda: Encoder(scale="query", fused=True), vectors, 14, False, ["y"]),
    "fused_qkv_dynamo18": (lambda: Encoder(fused=True), vectors, 18, True, ["y"]),
    "no_affine_legacy17": (lambda: Encoder(affine=False), vectors, 17, False, ["y"]),
    "several_legacy17": (Several, vectors, 17, False, ["hidden", "pooled", "log_probabilities"]),
    "several_dynamo20": (Several, vectors, 20, True, ["hidden", "pooled", "log_probabilities"]),
    "mask_mean_legacy17": (Masked, masked_tokens, 17, False, ["sentence"]),
    "mask_mean_dynamo18": (Masked, masked_tokens, 18, True, ["sentence"]),
    "mask_sdpa_dynamo23": (lambda: Masked(sdpa=True), masked_tokens, 23, True, ["sentence"]),
    "patches_legacy17": (Patches, image, 17, False, ["logits"]),
    "patches_dynamo18": (Patches, image, 18, True, ["logits"]),
    "pointwise_conv_legacy17": (Pointwise, vectors, 17, False, ["y"]),
    "gpt_gemm_legacy14": (Gpt, vectors, 14, False, ["y"]),
    "gpt_gemm_dynamo18": (Gpt, vectors, 18, True, ["y"]),
    "alibi_quickgelu_legacy17": (Alibi, vectors, 17, False, ["y"]),
    "gelu_tanh_dynamo20": (lambda: Encoder(activation=lambda x: F.gelu(x, approximate="tanh")), vectors, 20, True, ["y"]),
    "t5_legacy14": (T5, vectors, 14, False, ["y"]),
    "t5_dynamo18": (T5, vectors, 18, True, ["y"]),
    "einsum_legacy17": (Einsum, vectors, 17, False, ["y"]),
    "einsum_dynamo18": (Einsum, vectors, 18, True, ["y"]),
    "mixer_legacy17": (Mixer, vectors, 17, False, ["y"]),
    "half_legacy17": (lambda: Encoder().half(), lambda: {"x": torch.randn(1, TOKENS, WIDTH).half()}, 17, False, ["y"]),
    "double_legacy17": (lambda: Encoder(activation=F.relu).double(), lambda: {"x": torch.randn(1, TOKENS, WIDTH).double()}, 17, False, ["y"]),
    "symbols_legacy17": (Masked, masked_tokens, 17, False, ["sentence"]),
    "torch_post_dynamo20": (Stock, vectors, 20, True, ["y"]),
    "torch_pre_gelu_dynamo18": (lambda: Stock(norm_first=True, activation="gelu"), vectors, 18, True, ["y"]),
}


def export(model, inputs, opset, dynamo, outputs, symbols):
    """The exported model, weights inside; `symbols`: batch and length are symbolic."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        path = pathlib.Path(folder) / "model.onnx"
        options = {"external_data": False, "verbose": False} if dynamo else {}
        if symbols:
            options["dynamic_axes"] = {name: {0: "batch", 1: "sequence"} for name in inputs}
        torch.onnx.export(model, tuple(inputs.values()), str(path), input_names=list(inputs), output_names=outputs,
                          opset_version=opset, dynamo=dynamo, **options)
        proto = onnx.load(str(path))
    for node in proto.graph.node:  # traces of the exporter's source files, which are large
        del node.metadata_props[:]
        node.doc_string = ""
    del proto.graph.value_info[:]
    del proto.functions[:]
    del proto.graph.metadata_props[:]
    del proto.metadata_props[:]
    return proto


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def by_hand(opset, nodes, constants, inputs, outputs):
    """A model of standard operators, as other tools than PyTorch write them."""
    infos = lambda ports: [helper.make_tensor_value_info(n, t, s) for n, t, s in ports]
    tensors = [constant(name, value) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "hand", infos(inputs), infos(outputs), tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def gelu_operator(approximate):
    """The Gelu operator of opset 20 between two MatMuls with biases on the left."""
    random = np.random.default_rng(7)
    matrix = lambda n, m: (random.standard_normal((n, m)) / n**0.5).astype(np.float32)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain"], ["n"], "norm", axis=-1, epsilon=1e-5),
        helper.make_node("MatMul", ["n", "up.weight"], ["m"], "up"),
        helper.make_node("Add", ["up.bias", "m"], ["u"], "up.add"),
        helper.make_node("Gelu", ["u"], ["g"], "gelu", approximate=approximate),
        helper.make_node("MatMul", ["g", "down.weight"], ["d"], "down"),
        helper.make_node("Add", ["down.bias", "d"], ["e"], "down.add"),
        helper.make_node("Add", ["e", "x"], ["y"], "residual"),
    ]
    constants = {
        "gain": random.uniform(0.5, 1.5, WIDTH).astype(np.float32),
        "up.weight": matrix(WIDTH, HIDDEN), "up.bias": matrix(1, HIDDEN)[0],
        "down.weight": matrix(HIDDEN, WIDTH), "down.bias": matrix(1, WIDTH)[0],
    }
    port = lambda name: (name, TensorProto.FLOAT, [1, TOKENS, WIDTH])
    inputs = {"x": random.standard_normal((1, TOKENS, WIDTH)).astype(np.float32)}
    return by_hand(20, nodes, constants, [port("x")], [port("y")]), inputs


def attention_operator(kv_heads):
    """The Attention operator of opset 23 with a constant boolean mask."""
    random = np.random.default_rng(8)
    depth = WIDTH // HEADS
    matrix = lambda n, m: (random.standard_normal((n, m)) / n**0.5).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", f"{r}.weight"], [r], f"{r}.proj") for r in "qkv"]
    nodes += [
        helper.make_node("Attention", ["q", "k", "v", "mask"], ["a"], "attention", q_num_heads=HEADS, kv_num_heads=kv_heads),
        helper.make_node("MatMul", ["a", "o.weight"], ["y"], "o.proj"),
    ]
    constants = {
        "q.weight": matrix(WIDTH, WIDTH), "k.weight": matrix(WIDTH, kv_heads * depth),
        "v.weight": matrix(WIDTH, kv_heads * depth), "o.weight": matrix(WIDTH, WIDTH),
        "mask": np.tril(np.ones((TOKENS, TOKENS), dtype=bool)),
    }
    port = lambda name: (name, TensorProto.FLOAT, [1, TOKENS, WIDTH])
    inputs = {"x": random.standard_normal((1, TOKENS, WIDTH)).astype(np.float32)}
    return by_hand(23, nodes, constants, [port("x")], [port("y")]), inputs


HAND = {
    "gelu_operator_op20": lambda: gelu_operator("none"),
    "gelu_tanh_operator_op20": lambda: gelu_operator("tanh"),
    "attention_operator_op23": lambda: attention_operator(HEADS),
    "attention_gqa_operator_op23": lambda: attention_operator(1),
}


def keep(name, proto, inputs):
    onnx.checker.check_model(proto)
    data = proto.SerializeToString()
    assert len(data) < MOST_BYTES, f"{name} has {len(data)} bytes"
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    outputs = session.run(None, inputs)
    names = [f"expected_{o.name}" for o in session.get_outputs()]
    (HERE / f"{name}.onnx").write_bytes(data)
    wide = lambda array: array.astype(np.float32) if array.dtype == np.float16 else array
    arrays = inputs | dict(zip(names, outputs))
    np.savez(HERE / f"{name}.npz", **{key: wide(value) for key, value in arrays.items()})
    print(f"{name}: {len(proto.graph.node)} nodes, {len(data)} bytes")


def main(wanted):
    for name, (make, sample, opset, dynamo, outputs) in TORCH.items():
        if not wanted or name in wanted:
            torch.manual_seed(0)
            model, inputs = make().eval(), sample()
            proto = export(model, inputs, opset, dynamo, outputs, name.startswith("symbols"))
            keep(name, proto, {k: v.numpy() for k, v in inputs.items()})
    for name, make in HAND.items():
        if not wanted or name in wanted:
            keep(name, *make())


if __name__ == "__main__":
    main(sys.argv[1:])
