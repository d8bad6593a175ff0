# %% [markdown]
# # From a PyTorch model to an encrypted prediction
#
# A small transformer is trained, exported to ONNX, compiled to a circuit, and run on ciphertexts. It takes half a minute or so.
#
# Besides `thex` it needs `pip install torch onnx`. Run it as a script, or cell by cell in an editor that knows `# %%`.

# %%
import math
import tempfile
from pathlib import Path

import numpy as np
import thex
import torch
from torch import nn

torch.manual_seed(0)
TOKENS, WIDTH, HIDDEN = 6, 8, 16

# %% [markdown]
# ## A model
#
# It reads six numbers, a token each, and says whether the largest is among the first three. One pre-norm block with attention over all
# tokens: softmax, GELU and LayerNorm, as in any transformer.


# %%
class Block(nn.Module):  # type: ignore[misc, unused-ignore]
    """Attention of one head, and a perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(x)
        scores = self.query(h) @ self.key(h).transpose(-1, -2) / math.sqrt(WIDTH)
        x = x + self.out(torch.softmax(scores, -1) @ self.value(h))
        y: torch.Tensor = x + self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return y


class Model(nn.Module):  # type: ignore[misc, unused-ignore]
    """Numbers [batch, 6] → logits [batch, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, WIDTH)
        self.position = nn.Parameter(0.1 * torch.randn(TOKENS, WIDTH))
        self.block = Block()
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.block(self.embed(x[..., None]) + self.position).mean(1))
        return y


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random numbers, and whether the largest is among the first three (class 1) or not (class 0)."""
    x = torch.rand(count, TOKENS) * 2 - 1
    return x, (x.argmax(1) < TOKENS // 2).long()


model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for step in range(1500):
    x, y = batch(256)
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
    optimizer.step()

test_x, test_y = batch(500)
with torch.no_grad():
    float_logits = model(test_x).numpy()
print(f"float: {(float_logits.argmax(1) == test_y.numpy()).mean():.1%} right")

# %% [markdown]
# ## To ONNX, and to a circuit
#
# The calibration data are typical inputs: they fix the ranges that ciphertexts can hold.

# %%
calibration = batch(500)[0].numpy()
with tempfile.TemporaryDirectory() as folder:
    exported = Path(folder, "first_half.onnx")
    torch.onnx.export(model.eval(), (test_x[:1],), exported, input_names=["x"], output_names=["logits"], opset_version=18, dynamo=False)
    compiled = thex.compile(exported, {"x": calibration}, labels=["second half", "first half"])
print(compiled.report())

# %% [markdown]
# ## Simulated
#
# The circuit's integers and tables with the noise that ciphertexts will have, on values that are not encrypted: accuracy, before any key is
# made.

# %%
simulated = compiled.simulate(test_x.numpy(), seed=1)
classes = simulated["logits"].argmax(1)
print(f"simulated: {(classes == test_y.numpy()).mean():.1%} right, {(classes == float_logits.argmax(1)).mean():.1%} agree with float")
print(f"{simulated.overflows} values left their ranges")

# %% [markdown]
# ## Encrypted
#
# The client makes keys and encrypts. The server has the circuit, the server key and ciphertexts, and nothing that decrypts.

# %%
client = thex.Client(compiled).keygen()
numbers = np.array([0.1, 0.9, -0.4, 0.3, -0.7, 0.2])
encrypted = client.encrypt(numbers)
print(client, encrypted)


# %%
def progress(done: int, total: int) -> None:
    """What a bar would show: `tqdm`, for example."""
    print(f"\r{done}/{total} PBS", end="", flush=True)


result = compiled.circuit.run(client.server_key, encrypted, progress=progress)
print()

# %%
answer = client.decrypt(result)
print(f"{numbers} → the largest is in the {answer.label}: {answer['logits'][0]}")
with torch.no_grad():
    print(f"float logits: {model(torch.tensor(numbers[None], dtype=torch.float32)).numpy()[0]}")
assert answer.label == "first half"
