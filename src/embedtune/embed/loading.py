"""Loading checkpoints through transformers, quietly, with its errors told in one line."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import errors as hub_errors

from embedtune.embed.checkpoints import PACKAGED
from embedtune.embed.quantization import import_peft
from embedtune.embed.quiet import hush_libraries
from embedtune.errors import BackboneError, EmbedtuneError, MissingExtraError, ResourceError, suggest_nearest
from embedtune.memory import is_out_of_memory

#: What an adapter may say of itself, beside what LoRA's defaults are.
_LORA_SETTINGS = (
    "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_alpha", "lora_dropout",
    "peft_version", "r",
    "revision", "target_modules", "task_type", "use_dora", "use_rslora",
)  # fmt: skip
_FROM_HUB = (OSError, ValueError, KeyError, hub_errors.HfHubHTTPError)


_RUNS_CODE = "model '{}' runs Python code of its own: read it, then set trust_remote_code=True."


def load_config(name: str, source: Path | str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """Read a model's config.

    Raises
    ------
    BackboneError, MissingExtraError
        As `explain` says.
    """
    if isinstance(source, Path) and not (source / "config.json").exists():
        if (source / "adapter_config.json").exists():
            raise BackboneError(
                f"'{source}' holds an adapter, not a model: give it as adapter, beside its model."
            )
        raise BackboneError(f"model folder '{source}' has no config.json: give the folder that holds it.")
    with hush_libraries(keep_bars=isinstance(source, str)), explain(name, source):
        config = transformers.AutoConfig.from_pretrained(
            source, revision=revision or "main", trust_remote_code=trust_remote_code
        )
    if not trust_remote_code and _names_kernel(config):
        raise BackboneError(_RUNS_CODE.format(name))
    return config


def _names_kernel(config: Any) -> bool:
    """Tell whether a config, or one inside it, asks for attention code of the Hub, ``organisation/name``."""
    inside = [value for value in vars(config).values() if isinstance(value, transformers.PreTrainedConfig)]
    return "/" in str(getattr(config, "_attn_implementation", "")) or any(map(_names_kernel, inside))


def load_tokenizer(name: str, source: Path | str, *, revision: str | None, trust_remote_code: bool) -> Any:
    """Read a model's tokenizer; raises as `load_config` does."""
    with hush_libraries(keep_bars=isinstance(source, str)), explain(name, source):
        return transformers.AutoTokenizer.from_pretrained(
            source, revision=revision or "main", trust_remote_code=trust_remote_code
        )


def load_weights(
    name: str,
    source: Path | str,
    *,
    revision: str | None,
    trust_remote_code: bool,
    dtype: Any,
    lora: Path | None = None,
    causal: bool = False,
    quantization: Any = None,
    device_map: Any = None,
) -> tuple[Any, list[str]]:
    """Load a base model (its encoder half if it has two), with a LoRA adapter in it.

    Parameters
    ----------
    lora : Path, optional
        An adapter: merged into full-precision weights; left beside quantized ones, where merging would round it.
    causal : bool
        Load a decoder with its language-model head instead.
    quantization : transformers.BitsAndBytesConfig, optional
    device_map : str or dict, optional
        Where to put what, as transformers takes it.

    Returns
    -------
    model : transformers.PreTrainedModel
    missing : list of str
        Parameters of a pooler that the checkpoint lacks.

    Raises
    ------
    BackboneError
        As `load_config` does, and if other weights are missing, or the adapter doesn't fit the model.
    """
    config = load_config(name, source, revision=revision, trust_remote_code=trust_remote_code)
    family: Any = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    with hush_libraries(keep_bars=isinstance(source, str)), explain(name, source):
        model, report = family.from_pretrained(
            source,
            config=config,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            dtype=dtype,
            quantization_config=quantization,
            device_map=device_map,
            output_loading_info=True,
        )
    missing = sorted(report["missing_keys"])
    needed = [key for key in missing if not key.startswith("pooler.")]
    if needed:
        advice = (
            "give one that was saved with its language-model head"
            if causal
            else "it is incomplete or of another architecture; save it again with save_pretrained"
        )
        raise BackboneError(
            f"the checkpoint of '{name}' lacks {len(needed)} weights, {needed[0]} first: {advice}."
        )
    if lora is not None:
        model = _put_lora(name, model, lora, merge=quantization is None)
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    model.config.use_cache = False
    return model, missing


def _put_lora(name: str, model: Any, folder: Path, *, merge: bool) -> Any:
    peft = import_peft()
    misfit = f"the adapter in '{folder}' does not fit '{name}': give the model that it was trained on."
    with warnings.catch_warnings():
        # peft asks transformers for a name that is on its way out.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            _check_lora(peft, folder)
            adapted = peft.PeftModel.from_pretrained(model, folder)
            return adapted.merge_and_unload() if merge else adapted.get_base_model()
        except EmbedtuneError:
            raise
        except Exception as error:  # whatever a damaged or forged one makes of it
            if is_out_of_memory(error):
                raise
            raise BackboneError(misfit) from error


def _check_lora(peft: Any, folder: Path) -> None:
    """Refuse an adapter with settings that import modules, load other models, or are patterns that never end."""
    given = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    plain = {**peft.LoraConfig().to_dict(), "peft_type": "LORA"}
    odd = [
        key for key, value in given.items() if key not in _LORA_SETTINGS and value and value != plain.get(key)
    ]
    if isinstance(given.get("target_modules"), str) and given["target_modules"] != "all-linear":
        odd.append("target_modules")
    if odd:
        raise BackboneError(
            f"the adapter in '{folder}' sets {', '.join(odd)}, which isn't read: give a plain LoRA adapter, its "
            "target_modules a list of names."
        )


@contextlib.contextmanager
def explain(name: str, source: Path | str) -> Iterator[None]:
    """Turn what transformers and the Hub raise into one line that says what to do.

    Raises
    ------
    BackboneError
        If the model is missing, gated or needs remote code, or its files can't be read.
    ResourceError
        If quantized weights don't fit.
    MissingExtraError
        If a packaged model can be had neither from its package nor from the Hub.
    """
    try:
        yield
    except EmbedtuneError:
        raise
    except ImportError as error:
        told = " ".join(str(error).split())
        raise MissingExtraError(f"model '{name}' needs a package that isn't here: {told[:200]}") from error
    except Exception as error:  # readers of damaged files raise whatever they meet
        if is_out_of_memory(error):
            raise
        if not isinstance(source, Path) and not isinstance(error, _FROM_HUB):
            raise
        causes = tuple(_walk_causes(error))
        told = " ".join(str(cause) for cause in causes)
        if "trust_remote_code" in told:
            raise BackboneError(_RUNS_CODE.format(name)) from error
        if "dispatched on the CPU" in told:
            raise ResourceError(
                f"model '{name}' doesn't fit into the CUDA devices' memory, and quantized weights can't be kept "
                "anywhere else: set precision to nf4, or use larger devices."
            ) from error
        if _is_gated(causes):
            raise BackboneError(
                f"model '{name}' is gated: accept its licence on its page on the Hub, "
                "then set the environment variable HF_TOKEN to your token."
            ) from error
        if isinstance(source, Path):
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise BackboneError(f"model folder '{source}' can't be read: {first}") from error
        if name in PACKAGED:
            raise MissingExtraError(
                f"model '{name}' isn't installed and the Hub can't be reached: pip install 'embedtune[demo]'."
            ) from error
        raise BackboneError(
            f"model '{name}' is neither a folder nor found on the Hub{suggest_nearest(name, PACKAGED)}: "
            "check the name and the connection (a private one needs HF_TOKEN); 'all-MiniLM-L6-v2' works offline."
        ) from error


def _is_gated(causes: Sequence[BaseException]) -> bool:
    """Tell a gated model from one that isn't there, whose message speaks of gated ones too."""
    for cause in causes:
        if isinstance(cause, hub_errors.RepositoryNotFoundError):
            return isinstance(cause, hub_errors.GatedRepoError)
    return any("gated repo" in str(cause) for cause in causes)


def _walk_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
