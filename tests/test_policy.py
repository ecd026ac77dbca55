"""What the policy takes a model for, and which models it refuses: pytest tests/test_policy.py"""

import json
import shutil
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from helpers import SMALL, python
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    MistralConfig,
    OlmoConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3NextConfig,
    StableLmConfig,
)
from transformers import AutoModelForCausalLM as Auto

from logprobs import CHUNK, token_logp
from tasks import tiny
from trainer.batching import collate
from trainer.model import describe, dropouts, find_model, load_model
from trainer.policy import Policy, require_same, require_supported

SIZE = SMALL | dict(vocab_size=90, hidden_size=32, intermediate_size=48, initializer_range=0.3)
SLIDING = dict(use_sliding_window=True, sliding_window=4, max_window_layers=0)


def saved(directory, config, seed=0):
    torch.manual_seed(seed)
    model = Auto.from_config(config)
    for parameter in model.parameters():  # biases too, which are 0 at first
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    return str(directory)


def policy_of(directory, temperature=1.0):
    lm = load_model(directory)
    return Policy(lm, temperature, torch.float32, lm.config)


@pytest.mark.parametrize(
    "config", [Qwen2Config(**SIZE), Qwen2Config(**SIZE, **SLIDING), MistralConfig(**SIZE, sliding_window=5)], ids=str
)
def test_without_a_mask_it_is_the_model_with_a_mask_to_the_bit(config, tmp_path):
    """Rows of different lengths, padded on the right."""
    policy = policy_of(saved(tmp_path, config)).train()
    generator = torch.Generator().manual_seed(1)
    lengths = (30, 7, 19)
    texts = [torch.randint(90, (n,), generator=generator) for n in lengths]
    batch = collate([ids[:3] for ids in texts], [ids[3:] for ids in texts])
    mask = (torch.arange(30) < torch.tensor(lengths)[:, None]).long()
    hidden = policy.lm.base_model(batch.input_ids, attention_mask=mask, use_cache=False).last_hidden_state
    head = policy.lm.get_output_embeddings().weight
    assert torch.equal(policy(batch), token_logp(hidden[batch.predicts], batch.tokens, head, 1.0, CHUNK))
    require_same(policy, "this one")


@pytest.mark.parametrize("dropout", [dict(attention_dropout=0.3), dict(attention_dropout=0.3, hidden_dropout=0.3)])
def test_dropout_is_off_in_training(dropout, tmp_path):
    config = StableLmConfig(**SIZE, **dropout)
    policy = policy_of(saved(tmp_path, config))
    assert dropouts(AutoConfig.from_pretrained(tmp_path)) == dropout  # which the run says, and saves again
    batch = collate([torch.arange(3)], [torch.arange(9)])
    assert policy.training and torch.equal(policy(batch), policy(batch))


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SIZE, head_dim=16, final_logit_softcapping=2.0),
        CohereConfig(**SIZE, logit_scale=0.25),
    ],
    ids=lambda config: config.model_type,
)
def test_a_head_that_does_more_than_multiply_is_refused_with_the_difference(config, tmp_path):
    policy = policy_of(saved(tmp_path, config))
    with pytest.raises(
        ValueError, match=rf"--model here: {type(policy.lm).__name__} can't be trained here: .* nats off"
    ):
        require_same(policy, "here")


def test_a_model_of_more_than_text_and_a_gpu_without_bf16_are_refused_by_name(monkeypatch):
    """The GPU is made up: here is none."""
    with pytest.raises(ValueError, match="--model here is qwen2_vl, which reads more than text"):
        require_supported("here", Qwen2VLConfig(text_config=SIZE), torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for capability, refused in (((7, 5), True), ((8, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        with pytest.raises(ValueError, match="Tesla T4 .* bfloat16.* has 7.5") if refused else nullcontext():
            require_supported("here", Qwen2Config(**SIZE), torch.device("cuda"))


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    policy = policy_of(saved(tmp_path, Qwen2Config(**SIZE)))
    policy.lm.model.norm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="nan nats"):
        require_same(policy, "here")


NEXT = dict(num_hidden_layers=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
NEXT |= dict(linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)


@pytest.mark.parametrize(
    "config",
    [
        OlmoConfig(**SIZE),
        GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=2),
        Qwen3NextConfig(**SIZE | NEXT | dict(shared_expert_intermediate_size=16)),  # linear attention in three layers
    ],
    ids=lambda config: config.model_type,
)
def test_other_architectures_train_if_they_are_what_the_policy_computes(config, tmp_path):
    require_same(policy_of(saved(tmp_path, config)), "this one")


def test_a_model_that_cannot_be_loaded_is_one_line(tmp_path):
    directory = saved(tmp_path / "model", Qwen2Config(**SIZE))
    weights = tmp_path / "model/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"--model \S+model: it can't be loaded \(\w+: [^\n]*\)$"):
        load_model(directory)
    weights.unlink()
    with pytest.raises(ValueError, match="it can't be loaded"):
        load_model(directory)
    with pytest.raises(ValueError, match="--model .*nothing: there is no such directory"):
        find_model(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=rf"this directory has no model's config.json; is it {directory}\?"):
        find_model(str(tmp_path))


def test_a_saved_model_is_whole_or_not_there(tmp_path):
    """A save that fails late leaves the model of that name as it was."""

    class FullDisk:
        def save_pretrained(self, directory):
            raise OSError("No space left on device")

    start, out = saved(tmp_path / "start", Qwen2Config(**SIZE)), tmp_path / "model"
    policy = Policy(load_model(start), 1.0, torch.float32, describe(start))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert "could not be saved: No space left" in policy.save(out, FullDisk()) and not out.exists()
        assert policy.save(out, tiny.make_tokenizer()) is None
        (out / "mark").touch()
        assert policy.save(out, FullDisk()) and (out / "mark").exists()
        assert policy.save(out, tiny.make_tokenizer()) is None and not (out / "mark").exists()
    finally:
        dist.destroy_process_group()
    for name, tensor in load_file(out / "model.safetensors").items():
        assert torch.equal(tensor, policy.lm.state_dict()[name])
    assert {path.name for path in tmp_path.iterdir()} == {"start", "model"}


def test_a_model_that_is_refused_leaves_no_run_directory(tmp_path):
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    saved(tmp_path / "model", CohereConfig(**SIZE | dict(vocab_size=300), logit_scale=0.25, eos_token_id=1))
    flags = f"--preset tiny --sampler transformers --model {tmp_path / 'model'} --output {tmp_path / 'run'}".split()
    refused = python("grpo.py", *flags, check=False)
    assert refused.returncode == 2 and not (tmp_path / "run").exists()
    assert "CohereForCausalLM can't be trained here" in refused.stderr and "Traceback" not in refused.stderr


def test_a_context_that_is_too_short_is_refused_with_what_raises_it(tmp_path):
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    saved(tmp_path / "model", Qwen2Config(**SIZE | dict(vocab_size=300, eos_token_id=1, max_position_embeddings=40)))
    refused = python(
        "grpo.py", *f"--preset tiny --sampler transformers --model {tmp_path / 'model'}".split(), check=False
    )
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "is more than the 40 positions of" in refused.stderr and "raise max_position_embeddings" in refused.stderr


# ------------------------------------------------------------------------------------ models that are not what they say


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("whole"), Qwen2Config(**SIZE))


def change_weights(directory, change):
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def change_config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def as_lora(weights):
    """The names that peft gives the weights of a model whose adapter was not merged."""
    for name in [name for name in weights if "q_proj.weight" in name]:
        weights[name.replace("q_proj", "q_proj.base_layer")] = weights.pop(name)


SPOILT = {
    "missing": (lambda d: change_weights(d, lambda w: w.pop("model.norm.weight")), "lack 1 weights, model.norm.weight"),
    "unmerged LoRA": (lambda d: change_weights(d, as_lora), "lack 2 weights, model.layers.0.self_attn.q_proj.weight"),
    "fewer layers": (
        lambda d: change_config(d, num_hidden_layers=1, layer_types=None),
        "no place for, model.layers.1.",
    ),
    "a head for rewards": (
        lambda d: change_weights(d, lambda w: w.update({"v_head.weight": torch.ones(1)})),
        "hold 1 weights that its config.json has no place for, v_head.weight",
    ),
    "another shape": (lambda d: change_config(d, intermediate_size=40), "6 weights are not of the shape"),
    "fp8": (lambda d: change_config(d, quantization_config={"quant_method": "fp8"}), r"quantized \(fp8\)"),
    "gptq": (
        lambda d: change_config(d, quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantized \(gptq\)",
    ),
    "Git LFS": (
        lambda d: (d / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "can't be loaded",
    ),
    "padding": (lambda d: change_config(d, pad_token_id=90), "can't be loaded"),
    "eos as text": (lambda d: change_config(d, eos_token_id="</s>"), "can't be loaded"),
    "no such attention": (lambda d: change_config(d, attn_implementation="flash_attention_9"), "can't be loaded"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_model_that_is_not_whole_is_refused_by_one_line(whole, tmp_path, name):
    """By what training and evaluation both load with."""
    shutil.copytree(whole, tmp_path / "model")
    spoil, message = SPOILT[name]
    spoil(tmp_path / "model")
    with pytest.raises(ValueError, match=rf"--model \S+model: .*{message}") as caught:
        load_model(tmp_path / "model", torch.bfloat16)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_says_what_it_is(whole, tmp_path):
    for name, files, message in [
        ("adapter", ["adapter_config.json"], "holds an adapter .*merge it"),
        ("beside", ["adapter_config.json", "config.json", "model.safetensors"], "holds an adapter .*merge it"),
        ("run", ["config.json", "metrics.jsonl", "model/config.json"], r"is it \S+run/model\?"),
        ("unfinished", ["config.json", "metrics.jsonl"], "has not finished"),
    ]:
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text("{}")
        with pytest.raises(ValueError, match=message):
            find_model(str(tmp_path / name))
    for model, message in [
        (f"{whole}/model.safetensors", "is a file"),
        ("runs/tiny/model", "no such directory"),
        ("s3://bucket/model", "no such directory"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_model(model)


def test_the_built_in_model_in_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    """A file in its place, as root may write everywhere."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(tiny.ensure_model, "__defaults__", (tmp_path / "file" / "cache", 0))
    with pytest.raises(ValueError, match="--model tiny: it is made in .* can't be written"):
        find_model("tiny")


def test_gpus_that_torch_cannot_use_end_the_run(tmp_path):
    """A script stands in for nvidia-smi: here is no GPU with a driver that is too old."""
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: x)'\necho 'GPU 1: NVIDIA H100 (UUID: y)'\n")
    fake.chmod(0o755)
    import os

    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    del env["CUDA_VISIBLE_DEVICES"]
    done = python("-m", "trainer.config", "--preset", "tiny", check=False, env=env)
    assert done.returncode == 2 and "nvidia-smi lists 2 GPUs, but torch" in done.stderr and "R580" in done.stderr
    hidden = python("-m", "trainer.config", "--preset", "tiny", env=env | {"CUDA_VISIBLE_DEVICES": ""})
    assert hidden.stderr == ""
