"""Training by the ecosystem's tools: Trainer, PEFT, more tokens."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from test_models import model_of
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import goldfinch as gf
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.moby_dick import moby_dick_chapters
from goldfinch.data.prepare import prepare
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.huggingface import (
    GoldFinchCache,
    GoldFinchForCausalLM,
    PreparedDataset,
    build_optimizers,
    lora_targets,
)
from goldfinch.huggingface.tokenization import to_huggingface
from goldfinch.inference.language_model import LanguageModel


@pytest.fixture
def windows():
    ids = torch.randint(1, 99, (16, 24), generator=torch.Generator().manual_seed(2))
    return [{"input_ids": row, "labels": row} for row in ids]


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"gradient_accumulation_steps": 2}])
@pytest.mark.filterwarnings("default")
def test_trainer_lowers_the_loss(windows, options, tmp_path):
    model = model_of()
    settings = {"max_steps": 8, "learning_rate": 5e-3, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    arguments = TrainingArguments(str(tmp_path), **settings, **options)
    trainer = Trainer(model=model, args=arguments, train_dataset=windows, eval_dataset=windows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "book.txt").write_text("\n\n".join(moby_dick_chapters()[:6])[:60_000])
    prepare([folder / "book.txt"], folder / "prepared", ByteTokenizer())
    return str(folder / "prepared")


# Muon makes its updates in bfloat16, which takes a rounding in a gradient for a larger one.
@pytest.mark.parametrize(("kind", "tolerance"), [("adamw", 1e-5), ("muon", 1e-4)])
@pytest.mark.parametrize("document_resets", [False, True])
@pytest.mark.filterwarnings("default")
def test_trainer_has_the_losses_of_goldfinch_train(kind, tolerance, document_resets, data, tmp_path):
    model_of(vocab_size=257).save_pretrained(tmp_path / "initial")
    optimizer = gf.OptimizerConfig(kind=kind, learning_rate=3e-3, warmup_steps=3)
    shape = {"sequence_length": 48, "batch_size": 4, "seed": 5, "document_resets": document_resets}
    config = gf.TrainConfig(
        model=gf.load(tmp_path / "initial").config,
        initial=tmp_path / "initial",
        data=(data,),
        output=tmp_path / "ours",
        steps=10,
        optimizer=optimizer,
        dtype="float32",
        **shape,
    )
    gf.Trainer(config).train()
    records = map(json.loads, (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines())
    expected = [record["loss"] for record in records if "loss" in record]

    model = GoldFinchForCausalLM.from_pretrained(tmp_path / "initial")
    arguments = TrainingArguments(
        str(tmp_path / "theirs"),
        max_steps=10,
        per_device_train_batch_size=4,
        max_grad_norm=optimizer.max_gradient_norm,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    optimizers = build_optimizers(model, optimizer, steps=10)
    trainer = Trainer(model, arguments, train_dataset=PreparedDataset(data, **shape), optimizers=optimizers)
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses == pytest.approx(expected, abs=tolerance)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.filterwarnings("default")
def test_lora_on_gold_leaves_saved_contexts_valid(tmp_path):
    model = model_of()
    book = list(range(1, 40))
    LanguageModel(model.model.decoder(model.lm_head), None).read(book).save(tmp_path / "book.gfc")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=lora_targets(model, "gold"), task_type="CAUSAL_LM"))
    optimizer = torch.optim.Adam([weight for weight in tuned.parameters() if weight.requires_grad], 1e-2)
    ids = torch.tensor([book])
    losses = []
    for _ in range(10):
        loss = tuned(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    question = torch.tensor([[5, 6]])
    cache = GoldFinchCache.open(tmp_path / "book.gfc", model)
    answer = tuned.generate(input_ids=question, cache=cache, max_new_tokens=6, do_sample=False)
    expected = tuned.generate(input_ids=torch.cat([ids, question], 1), max_new_tokens=6, do_sample=False)
    assert answer[0, -6:].tolist() == expected[0, -6:].tolist()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("ours", [False, True])
def test_lora_on_all_linear_layers_trains_every_one_of_them(ours):
    model = model_of()
    linear = [name for name, module in model.model.named_modules() if type(module) is torch.nn.Linear]
    tuned = get_peft_model(
        model, LoraConfig(r=2, target_modules=lora_targets(model) if ours else "all-linear", task_type="CAUSAL_LM")
    )
    ids = torch.randint(1, 99, (2, 12))
    tuned(input_ids=ids, labels=ids).loss.backward()
    trained = [name for name, weight in tuned.named_parameters() if weight.grad is not None]
    assert len(trained) == 2 * len(linear)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.filterwarnings("default")
def test_trl_tunes_on_conversations(packing, tmp_path):
    questions = [("user", f"What is {number}?") for number in range(16)]
    answers = [("assistant", f"It is {number}.") for number in range(16)]
    conversations = [
        {"messages": [{"role": role, "content": content} for role, content in turns]}
        for turns in zip(questions, answers, strict=True)
    ]
    trainer = SFTTrainer(
        model_of(vocab_size=257),
        SFTConfig(
            str(tmp_path),
            max_steps=6,
            per_device_train_batch_size=4,
            learning_rate=5e-3,
            max_length=128,
            packing=packing,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(conversations),
        processing_class=to_huggingface(ByteTokenizer(), ChatTemplate()),
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.filterwarnings("default")
def test_a_vocabulary_can_grow():
    model = model_of()
    ids = torch.randint(1, 99, (2, 12))
    with torch.no_grad():
        before = model(ids).logits
        model.resize_token_embeddings(120)
        after = model(ids).logits
    assert model.config.to_model_config().vocab_size == after.shape[-1] == 120
    torch.testing.assert_close(after[..., :99], before, rtol=0, atol=1e-5)
    with torch.no_grad():
        assert torch.isfinite(model(ids + 20).logits).all()
