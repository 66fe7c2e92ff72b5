"""Options of `from_pretrained`, and `torch.compile`."""

import pytest
import torch
from test_models import model_of
from transformers import AutoModelForCausalLM

from goldfinch.huggingface import GoldFinchForCausalLM

IN_MEMORY = (
    "model.embedding",
    "model.embedding_norm",
    "model.token_cat",
    "model.output_norm",
    "lm_head",
    "model.blocks.2",
)
ON_DISK = dict.fromkeys(IN_MEMORY, "cpu") | {"model.blocks.0": "disk", "model.blocks.1": "disk"}


@pytest.fixture(scope="module")
def model():
    return model_of()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def ids():
    return torch.randint(1, 99, (2, 9), generator=torch.Generator().manual_seed(1))


def logits_of(model, ids, use_cache=False):
    with torch.no_grad():
        return model(ids, use_cache=use_cache).logits


def generated(model, ids):
    return model.generate(ids, max_new_tokens=6, do_sample=False)


@pytest.mark.parametrize(
    "options", [{"device_map": "auto"}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}], ids=str
)
def test_where_weights_are_put_changes_no_bit(options, model, folder, ids):
    loaded = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))
    assert torch.equal(generated(loaded, ids), generated(model, ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, "float64"], ids=str)
def test_dtype_is_that_of_all_weights(dtype, model, folder, ids):
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {weight.dtype for weight in loaded.parameters()} == {wanted}
    expected = logits_of(model, ids)
    tolerance = 0.05 if wanted == torch.bfloat16 else 1e-5
    assert (logits_of(loaded, ids) - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_recurrent_layers_may_stay_on_the_disk(model, folder, ids, tmp_path):
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map=ON_DISK, offload_folder=tmp_path).eval()
    assert all(weight.is_meta for weight in loaded.model.blocks[:2].parameters())
    expected = logits_of(model, ids)
    for use_cache in (False, True):
        assert (logits_of(loaded, ids, use_cache) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(generated(loaded, ids), generated(model, ids))
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits_of(GoldFinchForCausalLM.from_pretrained(tmp_path / "again"), ids), expected)


@pytest.mark.parametrize("on_disk", ["", "model.token_cat", "model.blocks.2"])
def test_a_cache_says_what_it_needs_in_memory(on_disk, model, folder, ids, tmp_path):
    places = {"": "disk"} if not on_disk else dict.fromkeys(ON_DISK, "cpu") | {on_disk: "disk"}
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=tmp_path).eval()
    expected = logits_of(model, ids)
    assert (logits_of(loaded, ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
    with pytest.raises(ValueError, match="device_map has offloaded GOLD layers or"):
        generated(loaded, ids)


# torch.compile looks at it itself and hides the warning; but where warnings are errors, it comes as one first.
ignore_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture
def compiled_forward():
    """compiled_forward(model, **options) -> the same, through torch.compile."""
    torch.compiler.reset()
    yield lambda model, **options: torch.compile(model, backend="aot_eager", **options)
    torch.compiler.reset()


@ignore_grad
def test_a_compiled_forward_pass_is_one_graph(model, ids, compiled_forward):
    expected = logits_of(model, ids)
    found = logits_of(compiled_forward(model, fullgraph=True), ids)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@ignore_grad
@pytest.mark.slow
@pytest.mark.parametrize("use_cache", [False, True])
def test_a_compiled_model_takes_padding_and_a_cache(use_cache, model, ids, compiled_forward):
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        expected, found = (
            each(ids, attention_mask=mask, use_cache=use_cache).logits for each in (model, compiled_forward(model))
        )
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@ignore_grad
@pytest.mark.slow
def test_a_compiled_model_trains_as_another(ids, compiled_forward):
    model, gradients = model_of().train(), []
    for each in (model, compiled_forward(model)):
        model.zero_grad()
        each(ids, labels=ids).loss.backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
