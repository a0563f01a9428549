"""verl's configuration dataclasses, from verl's own files, without the libraries that verl imports beside them.

`import verl.workers.config` loads torch, Ray, tensordict and transformers: 4 to 5 seconds for classes that use none of
them. Inside `light_verl()` those libraries are stand-ins that accept anything and do nothing, and the `__init__` of a
package of verl is not executed: the names that it re-exports are looked up in its source when they are asked for. What
is executed is verl's own code of the dataclasses and of their checks. Outside nothing stays in `sys.modules`, so that
verl can still be imported for good.

The one dataclass that needs a library is the model's: it reads a checkpoint. It gets a stand-in of one instead.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

__all__ = ["light_verl"]

_HEAVY = frozenset(
    "accelerate codetiming datasets flash_attn megatron numpy pandas peft PIL ray safetensors sglang tensordict torch "
    "torchdata torchvision transfer_queue transformers triton trl vllm wandb".split()
)
"""Libraries that are replaced where they are not loaded anyway."""

_STAND_IN = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 259,
}
"""config.json of a model (the one of `integrations.tiny_model`)."""


class _Absent:
    """Something of a library that is not there: has every attribute, can be called, subclassed and used as a type."""

    def __init__(self, *names: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # As a decorator it leaves what it decorates as it is.
        return args[0] if len(args) == 1 and not kwargs and callable(args[0]) else _Absent()

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()

    def __getitem__(self, item: Any) -> Any:
        return self

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __or__


class _AbsentModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return importlib.metadata.version(self.__name__)
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent()


class _Package(ModuleType):
    """A package of verl whose `__init__` is read, not executed."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(_home(self.__name__, name)), name)


def _home(module: str, name: str) -> str:
    """Find the module that defines a name: the one given, or the one that it imports the name from, and so on."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise AttributeError(f"{module} has no {name}")
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            return module
        if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
            package = module if spec.submodule_search_locations else module.rpartition(".")[0]
            return _home(importlib.util.resolve_name(f"{'.' * node.level}{node.module or ''}", package), name)
    raise AttributeError(f"{module} has no {name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for the heavy libraries and for packages of verl; leaves everything else to Python."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        top = fullname.partition(".")[0]
        # What is loaded already stays as it is, with everything below it.
        if top in _HEAVY and isinstance(sys.modules.get(top), _AbsentModule | None):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        if not _is_verl(fullname):
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, path)
        if found is None or not found.submodule_search_locations or fullname in _EXECUTED:
            return found
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=found.origin, is_package=True)
        spec.submodule_search_locations = found.submodule_search_locations
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        kind = _Package if _is_verl(spec.name) else _AbsentModule
        return kind(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


_EXECUTED = frozenset(("verl.workers.config", "verl.trainer.config"))
"""Packages of verl that hold nothing but dataclasses; their `__init__` is executed, since it imports with `*`."""

_modules: dict[str, ModuleType] = {}
"""What a first use has loaded, for the next."""


@contextlib.contextmanager
def light_verl() -> Iterator[None]:
    """Have verl's configuration modules importable without what verl needs.

    What is imported already of verl and of its libraries is put aside meanwhile, so no other thread may import then.

    Raises:
        Exception: Whatever a module raises that cannot be loaded in this way; verl must then be imported for good.
    """
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_verl(name) or name in _modules}
    before = set(sys.modules)
    sys.modules.update(_modules)
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        if not _modules:
            _give_a_model(importlib.import_module("verl.workers.config.model"))
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name in _modules or _is_verl(name) or _is_absent(sys.modules[name]):
                _modules[name] = sys.modules.pop(name)
        sys.modules.update(aside)


def _is_verl(name: str) -> bool:
    return name.partition(".")[0] == "verl"


def _is_absent(module: ModuleType) -> bool:
    """Whether a module is a stand-in, or holds one and so must not be left to anybody."""
    return isinstance(module, _AbsentModule) or any(
        isinstance(value, (_Absent, _AbsentModule)) for value in vars(module).values()
    )


def _give_a_model(module: ModuleType) -> None:
    """Let verl's HFModelConfig read a stand-in instead of a checkpoint."""
    tokenizer = SimpleNamespace(bos_token_id=None, eos_token_id=2, pad_token_id=0, chat_template="")
    values = {
        "hf_tokenizer": lambda *args, **kwargs: tokenizer,
        "hf_processor": lambda *args, **kwargs: None,
        "copy_to_local": lambda path, **kwargs: path,
        "get_generation_config": lambda *args, **kwargs: None,
        "AutoConfig": SimpleNamespace(from_pretrained=lambda *args, **kwargs: SimpleNamespace(**_STAND_IN)),
    }
    for name, value in values.items():
        getattr(module, name)  # raises where verl has changed, and verl is then imported for good
        setattr(module, name, value)
