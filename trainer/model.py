"""Which model a name means, and whether it is whole: training and evaluation open their models here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from tasks import tiny


def find_model(model: str) -> str:
    """The directory or hub id of `model`; "tiny" is made if missing. Raises ValueError for a directory without one."""
    path = Path(model)
    if model == "tiny":
        try:
            return str(tiny.ensure_model())
        except OSError as error:
            raise ValueError(
                f"--model tiny: it is made in {tiny.CACHE}, which can't be written ({error.strerror}): copy the "
                "repository to where you can write"
            ) from None
    if path.is_file():
        raise ValueError(f"--model {model}: this is a file; give the directory of a Hugging Face model")
    if path.is_dir():
        check_directory(model, path)
    elif path.is_absolute() or model.startswith((".", "~")) or model.endswith("/") or model.count("/") > 1:
        raise ValueError(f"--model {model}: there is no such directory here; download it first")
    return model


def check_directory(model: str, path: Path) -> None:
    if (path / "adapter_config.json").is_file():
        raise ValueError(
            f"--model {model}: it holds an adapter (adapter_config.json): merge it into its base model "
            "(peft: merge_and_unload), and give the directory of the result"
        )
    config = path / "config.json"
    is_model = config.is_file() and b'"model_type"' in config.read_bytes()
    if not is_model and (path / "model/config.json").is_file():
        raise ValueError(f"--model {model}: this directory has no model's config.json; is it {path / 'model'}?")
    if not is_model and (path / "metrics.jsonl").is_file():
        raise ValueError(f"--model {model}: this is a run that has not finished: its model/ is written at the end")
    if not config.is_file():
        raise ValueError(f"--model {model}: this directory has no config.json")


@contextmanager
def one_line(model: str | Path) -> Iterator[None]:
    """Whatever a damaged or foreign model makes transformers raise becomes a ValueError of one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("--"):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        where = "" if Path(model).is_dir() else "; there is no directory of that name here either"
        raise ValueError(f"--model {model}: it can't be loaded ({reason}){where}") from None


def first_line(error: Exception) -> str:
    return " ".join((str(error).strip().split("\n\n") or [""])[0].split())[:300] or "no reason given"


def open_model(model: str) -> tuple:
    """(its directory or hub id, tokenizer, config), before its weights are read. Raises ValueError."""
    directory = find_model(model)
    with one_line(model):
        return directory, AutoTokenizer.from_pretrained(directory), AutoConfig.from_pretrained(directory)


def load_model(model: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The causal language model in a directory or of a hub id, on the host, with its dropout off, which would make
    every ratio noise. Raises ValueError, which says what is wrong with it: weights that are missing, that it has no
    use for, or that are of another shape among others."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what it would say about the weights is said below, in a line
    try:
        with one_line(model):
            config = AutoConfig.from_pretrained(model)
            if quantization := getattr(config, "quantization_config", None):
                method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
                raise ValueError(f"--model {model}: its weights are quantized ({method}): give the model in bf16")
            for name in dropouts(config):
                setattr(config.get_text_config(), name, 0.0)
            config.output_attentions = config.output_hidden_states = False  # nobody looks at them
            options = dict(config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True)
            lm, found = AutoModelForCausalLM.from_pretrained(model, **options)
    finally:
        transformers_logging.set_verbosity(verbosity)
    lm.generation_config = GenerationConfig()  # nobody looks at it; the model's own might not be one that can be saved
    for kind, names in (
        ("its files lack {n} weights, {name} for one", found["missing_keys"]),
        ("its files hold {n} weights that its config.json has no place for, {name} for one", found["unexpected_keys"]),
        ("{n} weights are not of the shape in its config.json, {name} for one", found["mismatched_keys"]),
    ):
        if names:
            first = min(names, key=str)
            first = first[0] if isinstance(first, tuple) else first
            raise ValueError(f"--model {model}: {kind.format(n=len(names), name=first)}")
    return lm


def dropouts(config) -> dict[str, float]:
    """The dropout rates in a model's config that are not 0."""
    values = config.get_text_config().to_dict()
    return {name: value for name, value in values.items() if "drop" in name and isinstance(value, float) and value > 0}


class Description(NamedTuple):
    """What a model came with beside its weights, with which it is saved again, byte for byte."""

    dtype: torch.dtype
    files: dict[str, bytes]

    def write(self, directory: Path, tokenizer) -> None:
        (directory / "generation_config.json").unlink(missing_ok=True)
        for name, content in self.files.items():
            (directory / name).write_bytes(content)
        tokenizer.save_pretrained(directory)


def describe(model: str) -> Description:
    """The `Description` of a model in a directory or of a hub id."""
    files = {}
    for name in ("config.json", "generation_config.json"):
        if path := cached_file(model, name, _raise_exceptions_for_missing_entries=False):
            files[name] = Path(path).read_bytes()
    return Description(AutoConfig.from_pretrained(model).dtype or torch.float32, files)
