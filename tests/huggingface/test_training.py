"""Training by the ecosystem's tools: Trainer, PEFT, more tokens."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_models import model_of
from transformers import Trainer, TrainingArguments

from goldfinch.huggingface import GoldFinchCache
from goldfinch.inference.language_model import LanguageModel

GOLD = r".*blocks\.2\.time_mix\.(query|output)"


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


@pytest.mark.filterwarnings("default")
def test_lora_on_gold_leaves_saved_contexts_valid(tmp_path):
    model = model_of()
    book = list(range(1, 40))
    LanguageModel(model.model.decoder(model.lm_head), None).read(book).save(tmp_path / "book.gfc")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=GOLD, task_type="CAUSAL_LM"))
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
def test_lora_on_all_linear_layers_trains_every_one_of_them():
    model = model_of()
    linear = [name for name, module in model.model.named_modules() if type(module) is torch.nn.Linear]
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    ids = torch.randint(1, 99, (2, 12))
    tuned(input_ids=ids, labels=ids).loss.backward()
    trained = [name for name, weight in tuned.named_parameters() if weight.grad is not None]
    assert len(trained) == 2 * len(linear)


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
