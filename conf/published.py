"""What the papers report for the models of their presets, beside which a report shows its own figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from conf.base import Settings
from conf.load import read_toml

FOLDER = Path(__file__).parent / "published"


class Headline(Settings):
    """A figure that a paper names in its text."""

    what: str
    paper: str
    """As the paper gives it."""
    figure: str = ""
    """Our figure, by its name in the report's comparison of the method with the base. Empty: there is none."""
    form: str = "{:.2f}"
    """Format of our figure."""


class Published(Settings):
    """Figures and settings of a paper."""

    source: str
    figures: dict[str, dict[str, Annotated[tuple[float, ...], Field(min_length=1, max_length=2)]]] = Field(
        default_factory=dict
    )
    """By model, `method` for the one that the paper proposes, and by benchmark: accuracy in %, and mean tokens."""
    headlines: tuple[Headline, ...] = ()
    settings: dict[str, str | bool | int | float] = Field(default_factory=dict)
    """The paper's settings by dotted name; `none` for a section that it leaves out."""
    notes: tuple[str, ...] = ()
    """Other differences, and what the paper leaves open."""

    def differences(self, settings: Settings) -> list[tuple[str, str, str]]:
        """Settings that are not the paper's: name, the paper's value, ours."""
        pairs = [(name, value, _setting(settings, name)) for name, value in self.settings.items()]
        return [(name, str(paper), str(ours)) for name, paper, ours in pairs if paper != ours]


def published(pipeline: str, preset: str) -> Published | None:
    """What the paper of a bundled preset reports; None for other presets."""
    path = FOLDER / pipeline / f"{preset}.toml"
    return Published.model_validate(read_toml(path)) if path.is_file() else None


def _setting(settings: Any, name: str) -> str | bool | int | float:
    """The value of a dotted name; the type of a section, `none` where it is left out."""
    part, _, rest = name.partition(".")
    value = settings.get(part) if isinstance(settings, dict) else getattr(settings, part, None)
    if value is None:
        return "none"
    if rest:
        return _setting(value, rest)
    return "given" if isinstance(value, Settings) else value
